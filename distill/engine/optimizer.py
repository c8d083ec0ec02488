"""The optimizer and the learning-rate schedule, counted in steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from distill.config import OptimizationOptions
from distill.engine.resolve import given


def build_optimizer(
    parameters: Iterable[nn.Parameter], options: OptimizationOptions
) -> torch.optim.Optimizer:
    """Build SGD or AdamW over the parameters that take a gradient.

    Weight decay applies to every parameter, as published.
    """
    learning_rate = given(options.learning_rate)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            trained,
            lr=learning_rate,
            momentum=options.sgd_momentum,
            weight_decay=options.weight_decay,
        )
    return torch.optim.AdamW(trained, lr=learning_rate, weight_decay=options.weight_decay)


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
    num_steps = given(options.epochs) * steps_per_epoch
    warmup = round(given(options.warmup_epochs) * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if options.schedule == "step":
            epoch = step // steps_per_epoch
            return options.decay_factor ** sum(epoch >= after for after in options.milestones)
        progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
        return 0.5 * (1 + math.cos(math.pi * progress))

    return factor
