"""LARS: SGD with momentum whose step on every weight is scaled to that weight's norm.

Source: You et al., Large Batch Training of Convolutional Networks, 2017 (arXiv 1708.03888), in the
form that the programs of SimCLR (Chen et al., ICML 2020) and BYOL (Grill et al., NeurIPS 2020) use.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from distill.errors import DistillError
from distill.training.muon import GroupOptimizer


class LARS(GroupOptimizer):
    """Layer-wise adaptive rate scaling with the learning rate inside the momentum buffer.

    For every parameter w of an adapted group, with its gradient and its velocity v (0 at first):

        g = gradient + weight_decay w
        trust = trust_coefficient |w| / |g|, and 1 where one of the norms is 0
        v <- momentum v + lr trust g
        w <- w - v

    A group with `adapted=False` (BatchNorm and biases, as published) has neither weight decay nor
    trust: v <- momentum v + lr gradient. Without a gradient neither w nor v moves.

    timm's `Lars` differs in three ways. Its velocity collects trust g and is multiplied by lr when
    it is applied, so that steps taken at an earlier learning rate are rescaled by a schedule; here
    they keep the rate they were taken at. Its norm of the gradient is |gradient| + weight_decay |w|
    instead of |gradient + weight_decay w|. And with weight decay 0 it does not adapt at all unless
    told `always_adapt`.

    Args:
        params_or_groups: Parameters of any shape, or groups of them as for any optimizer of
            PyTorch, with `adapted` (True by default) among the options of a group. The dense
            parameters of a group lie on one device.
        lr: Learning rate, at least 0.
        momentum: Share of the velocity that is kept, in [0, 1).
        weight_decay: L2 penalty of the adapted groups, at least 0.
        trust_coefficient: Length of a step at learning rate 1 relative to the weight; positive.

    Raises:
        DistillError: When a value is out of range, in the arguments or in a group.
    """

    def __init__(
        self,
        params_or_groups: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "adapted": True,
        }
        super().__init__(params_or_groups, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with options of its own.

        Raises:
            DistillError: When an option is out of range.
        """
        _require_in_range({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        velocities = [self._velocity(weight) for weight in parameters]
        gradients: list[Tensor] = [weight.grad for weight in parameters if weight.grad is not None]
        torch._foreach_mul_(velocities, group["momentum"])
        if group["adapted"]:
            steps = _adapted(
                parameters,
                gradients,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                trust_coefficient=group["trust_coefficient"],
            )
            torch._foreach_add_(velocities, steps)
        else:
            torch._foreach_add_(velocities, gradients, alpha=group["lr"])
        torch._foreach_sub_(parameters, velocities)


def _adapted(
    weights: list[Tensor],
    gradients: list[Tensor],
    *,
    lr: float,
    weight_decay: float,
    trust_coefficient: float,
) -> list[Tensor]:
    """Return lr trust g of every weight; the norms stay on the device, nothing waits for them."""
    # without weight decay this is the copy that leaves .grad as it was
    steps = list(torch._foreach_add(gradients, weights, alpha=weight_decay))
    weight_norms = torch.stack(list(torch._foreach_norm(weights)))
    step_norms = torch.stack(list(torch._foreach_norm(steps)))
    trust = trust_coefficient * weight_norms / step_norms
    trust = torch.where((weight_norms > 0) & (step_norms > 0), trust, 1.0)
    torch._foreach_mul_(steps, list((lr * trust).unbind()))
    return steps


def _require_in_range(options: dict[str, Any]) -> None:
    allowed = {
        "lr": (options["lr"] >= 0, "at least 0"),
        "momentum": (0 <= options["momentum"] < 1, "at least 0 and below 1"),
        "weight_decay": (options["weight_decay"] >= 0, "at least 0"),
        "trust_coefficient": (options["trust_coefficient"] > 0, "positive"),
    }
    for name, (is_allowed, range_) in allowed.items():
        if not is_allowed:
            raise DistillError(f"{name} of LARS is {options[name]}, it must be {range_}")
