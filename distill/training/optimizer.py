"""The optimizer and the learning-rate schedule, counted in steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from distill.config import OptimizationOptions
from distill.training.configuration import require_resolved
from distill.training.lars import LARS
from distill.training.muon import Muon, is_kernel


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    options: OptimizationOptions,
    *,
    exempt_vectors: bool = False,
    precision: str = "fp32",
) -> torch.optim.Optimizer:
    """Build SGD, AdamW, Muon or LARS over the parameters that take a gradient.

    PyTorch's fused kernels are asked for: on a CPU, where it does not choose them by itself, a step
    of AdamW over the 57 million parameters of an AlexNet took 0.10 s instead of 0.96 s.

    Args:
        parameters: Of everything that is trained.
        options: Rule, learning rate, momentum, weight decay.
        exempt_vectors: Leave biases and the parameters of BatchNorm (all that is no matrix or
            kernel) without weight decay and, with LARS, without adaptation, as pre-training was
            published; otherwise weight decay applies to every parameter, as CompRess was.
        precision: Of the networks, `fp32` or `bf16`; Muon multiplies in it, too.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    kernels = []
    if options.optimizer == "muon":
        kernels = [parameter for parameter in trained if is_kernel(parameter)]
        trained = [parameter for parameter in trained if not is_kernel(parameter)]
    groups: list[dict[str, Any]] = [{"params": trained}]
    if exempt_vectors:
        groups = [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
    learning_rate, decay = require_resolved(options.learning_rate), options.weight_decay
    if options.optimizer == "muon":
        return Muon(
            groups,
            kernels,
            lr=learning_rate,
            momentum=options.sgd_momentum,
            weight_decay=decay,
            in_bf16=precision == "bf16",
        )
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=decay, fused=True)
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=learning_rate,
            momentum=options.sgd_momentum,
            weight_decay=decay,
            fused=True,
        )
    for exempt in groups[1:]:
        exempt["adapted"] = False
    return LARS(groups, lr=learning_rate, momentum=options.sgd_momentum, weight_decay=decay)


def build_schedule(
    optimizer: torch.optim.Optimizer, options: OptimizationOptions, *, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build the schedule that is advanced once per optimizer step."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, learning_rate_factor(options, steps_per_epoch)
    )


def learning_rate_factor(
    options: OptimizationOptions, steps_per_epoch: int
) -> Callable[[int], float]:
    """Return the share of the peak learning rate at a step, counted from 0.

    Linear warm-up from near zero, then a half cosine to zero at the last step, or `decay_factor`
    for every milestone (in epochs) that has passed.
    """
    num_steps = require_resolved(options.epochs) * steps_per_epoch
    warmup = round(require_resolved(options.warmup_epochs) * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if options.schedule == "step":
            epoch = step // steps_per_epoch
            return options.decay_factor ** sum(epoch >= after for after in options.milestones)
        progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
        return 0.5 * (1 + math.cos(math.pi * progress))

    return factor
