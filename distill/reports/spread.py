"""Means over seeds, how far they spread, and when a difference is larger than that.

The spread is the standard deviation over seeds, with n - 1. The best of several means is called so
only when it is above each other by more than sqrt(s1^2 + s2^2), s1 and s2 being the two spreads: a
difference of two single runs would vary about that much. This is a rule for reading a table, no
test of significance: with three seeds a spread is itself known poorly. One seed has no spread, so
that nothing can be said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev


@dataclass(frozen=True)
class Spread:
    """A mean over seeds.

    Attributes:
        mean: Of the values.
        std: Their standard deviation with n - 1; None of one value.
        num: How many there are.
    """

    mean: float
    std: float | None
    num: int

    def text(self) -> str:
        """Write mean and spread."""
        return f"{self.mean:.3f}" if self.std is None else f"{self.mean:.3f} ± {self.std:.3f}"


def spread_of(values: Sequence[float]) -> Spread | None:
    """Return mean and spread; None without values."""
    if not values:
        return None
    return Spread(mean(values), stdev(values) if len(values) > 1 else None, len(values))


def best_of(spreads: Sequence[Spread | None]) -> int | None:
    """Return the position of the one that is best by more than the spread; None without one.

    Args:
        spreads: Of what is compared, higher being better; None where nothing was measured.
    """
    there = [(found, position) for position, found in enumerate(spreads) if found is not None]
    if len(there) < 2:
        return None
    there.sort(key=lambda one: -one[0].mean)
    (first, position), *others = there
    is_best = all(_is_above(first, other) for other, _ in others)
    return position if is_best else None


def _is_above(one: Spread, other: Spread) -> bool:
    if one.std is None or other.std is None:
        return False
    return one.mean - other.mean > math.hypot(one.std, other.std)
