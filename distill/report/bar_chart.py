"""Bars with error bars as the geometry of an SVG figure; `templates/grid_parts.html` writes it.

Bars lie, and each has its name above it, so that long names fit a phone. They start at zero, since
their lengths are compared; lines across all bars show what they are to be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distill.report.axis import Axis, axis_of, tick_label
from distill.report.line_chart import Tick
from distill.report.spread import Spread

WIDTH, LEFT, RIGHT, TOP = 360, 8, 292, 10
ROW, BAR = 38, 14  # heights of a bar with its name, and of the bar
_NAME_ABOVE = 5  # between a name and its bar
_MAX_NAME = 46  # characters that fit


@dataclass(frozen=True)
class Bar:
    """A bar as drawn.

    Attributes:
        name: Above it.
        text: At its end.
        style: Number of its colour.
        name_y: Baseline of the name.
        top: Of the bar.
        length: Of the bar.
        error: Where the error bar begins and ends; None without one.
        text_x: Where the text begins.
    """

    name: str
    text: str
    style: int
    name_y: float
    top: float
    length: float
    error: tuple[float, float] | None
    text_x: float


@dataclass(frozen=True)
class Level:
    """A line across all bars: its name, its value in words, its style and its place."""

    name: str
    text: str
    style: int
    place: float


@dataclass(frozen=True)
class BarChart:
    """A figure.

    Attributes:
        title: Of the figure.
        description: The same in words, for those who do not see it.
        height: Of the figure.
        bottom: Where the axis lies.
        ticks: Along the bottom.
        bars: From the top.
        levels: Lines across.
    """

    title: str
    description: str
    height: float
    bottom: float
    ticks: tuple[Tick, ...]
    bars: tuple[Bar, ...]
    levels: tuple[Level, ...]


def bar_chart(
    title: str,
    bars: Sequence[tuple[str, Spread]],
    levels: Sequence[tuple[str, float]] = (),
) -> BarChart:
    """Lay out bars of numbers that are not negative.

    Args:
        title: Of the figure.
        bars: Names with means and spreads; whatever is not finite has no bar.
        levels: Names with what the bars are to be compared with.
    """
    bars = [(name, one) for name, one in bars if math.isfinite(one.mean)]
    levels = [(name, value) for name, value in levels if math.isfinite(value)]
    ends = [one.mean + (one.std or 0.0) for _, one in bars] + [value for _, value in levels]
    axis = axis_of([0.0, *ends, *([1.0] if not any(ends) else [])])
    bottom = TOP + ROW * len(bars) + 4
    return BarChart(
        title=title,
        description=describe(title, bars, levels),
        height=bottom + 26,
        bottom=bottom,
        ticks=tuple(Tick(axis.place(tick, LEFT, RIGHT), tick_label(tick)) for tick in axis.ticks),
        bars=tuple(_bar(name, one, row, axis) for row, (name, one) in enumerate(bars)),
        levels=tuple(
            Level(name, f"{value:.3f}", number + 1, axis.place(value, LEFT, RIGHT))
            for number, (name, value) in enumerate(levels)
        ),
    )


def describe(
    title: str, bars: Sequence[tuple[str, Spread]], levels: Sequence[tuple[str, float]]
) -> str:
    """Say in words what the figure shows."""
    parts = [f"{name}: {one.text()}." for name, one in bars]
    parts += [f"Line, {name}: {value:.3f}." for name, value in levels]
    return f"{title}. " + " ".join(parts)


def _bar(name: str, one: Spread, row: int, axis: Axis) -> Bar:
    top = TOP + ROW * row + ROW - BAR - 4
    end = axis.place(one.mean, LEFT, RIGHT)
    error = None
    if one.std is not None:
        low, high = max(0.0, one.mean - one.std), one.mean + one.std
        error = (axis.place(low, LEFT, RIGHT), axis.place(high, LEFT, RIGHT))
    return Bar(
        name=name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…",
        text=f"{one.mean:.3f}",
        style=0,
        name_y=top - _NAME_ABOVE,
        top=top,
        length=end - LEFT,
        error=error,
        text_x=max(end, error[1] if error else end) + 6,
    )
