"""Joins the options of pre-training with the self-supervised methods of `teachers`."""

from __future__ import annotations

from typing import Any

from torch import nn

from distill.engine.resolve import given
from distill.engine.schedules import Schedule, beta_schedule, target_momentum_schedule
from distill.jobs.setting import TrainingSetting
from distill.pretrain_config import PretrainMethodOptions
from teachers.byol import BYOL
from teachers.c_byol import CBYOL
from teachers.c_simclr import CSimCLR
from teachers.simclr import SimCLR


def build_method(options: PretrainMethodOptions, embedding_dim: int) -> nn.Module:
    """Build heads and loss of a method, with random weights (torch's global seed).

    Args:
        options: Resolved.
        embedding_dim: Width of the backbone's embedding.
    """
    widths: dict[str, Any] = {
        "hidden_dim": options.hidden_dim,
        "projection_dim": options.projection_dim,
    }
    if options.method == "simclr":
        return SimCLR(embedding_dim, temperature=1 / options.kappa_b, **widths)
    if options.method == "byol":
        weight = given(options.regression_weight)
        return BYOL(embedding_dim, regression_weight=weight, **widths)
    kappas: dict[str, Any] = {"kappa_e": given(options.kappa_e), "kappa_b": options.kappa_b}
    if options.method == "c-simclr":
        return CSimCLR(embedding_dim, **kappas, **widths)
    return CBYOL(
        embedding_dim,
        regression_weight=given(options.regression_weight),
        backward_encoder=options.backward_encoder,
        **kappas,
        **widths,
    )


def method_schedules(
    options: PretrainMethodOptions, setting: TrainingSetting
) -> tuple[Schedule | None, Schedule | None]:
    """Return beta and the target's momentum as functions of the step; None where unused."""
    beta = momentum = None
    if options.beta is not None:
        rise = round(given(options.beta_epochs) * setting.batches_per_epoch)
        beta = beta_schedule(options.beta, kind=options.beta_schedule, num_steps=rise)
    if options.target_momentum is not None:
        momentum = target_momentum_schedule(options.target_momentum, num_steps=setting.num_steps)
    return beta, momentum
