"""Axes of the figures: round ticks, and where a value lies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_ROUND = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    Attributes:
        low: Value at its start.
        high: Value at its end, above `low`.
        ticks: Round values between the two, ascending.
    """

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float, start: float, end: float) -> float:
        """Return where `value` lies when the axis is drawn from `start` to `end`."""
        return start + (end - start) * (value - self.low) / (self.high - self.low)


def axis_of(values: Iterable[float], *, num_ticks: int = 5) -> Axis:
    """Return an axis that shows all finite values and ends on ticks.

    Args:
        values: Any numbers; without a finite one the axis goes from 0 to 1.
        num_ticks: About how many ticks there are, at least 2.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if low == high:
        margin = abs(low) / 2 or 0.5
        low, high = low - margin, high + margin
    step = _round_step((high - low) / num_ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{number * step:.12g}") for number in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def _round_step(rough: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in _ROUND if factor * power >= rough * (1 - 1e-9))


def tick_label(value: float, *, is_share: bool = False) -> str:
    """Write a tick's value: in per cent, with k for thousands, or as short as it goes."""
    if is_share:
        return f"{100 * value:.6g}%"
    if abs(value) >= 10_000:
        return f"{value / 1000:.6g}k"
    if 0 < abs(value) < 0.001:
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.6g}"
