"""What changes over a pre-training run besides the learning rate, as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def beta_schedule(beta: float, *, kind: str, num_steps: int) -> Schedule:
    """Return the weight of the residual information at a step, counted from 0.

    Args:
        beta: The weight that is reached and kept.
        kind: `constant`, or how it rises from 0: `linear`, `cosine` (slowly at both ends).
        num_steps: Steps that the rise takes.
    """

    def value(step: int) -> float:
        if kind == "constant" or step >= num_steps:
            return beta
        done = step / num_steps
        return beta * (done if kind == "linear" else 0.5 * (1 - math.cos(math.pi * done)))

    return value


def target_momentum_schedule(first: float, *, num_steps: int) -> Schedule:
    """Return the target's momentum at a step: from `first` to 1 by half a cosine.

    m = 1 - (1 - m0) (1 + cos(pi t / T)) / 2 (Grill et al., BYOL, NeurIPS 2020).
    """

    def value(step: int) -> float:
        done = min(1.0, step / max(1, num_steps))
        return 1 - (1 - first) * (1 + math.cos(math.pi * done)) / 2

    return value
