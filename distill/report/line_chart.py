"""Curves as the geometry of an SVG figure; `templates/figures.html` writes it down.

Series differ in colour, in dashes and in the marks at their points, so that nobody needs colours.
Deliberate limit: long series are thinned by the means of bins, which hides single spikes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from distill.report.axis import Axis, axis_of, tick_label
from distill.report.content import Curves, Series

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 350, 12, 194
MAX_POINTS = 240
_MAX_MARKS = 24  # points of a series that are marked one by one


@dataclass(frozen=True)
class Tick:
    """A tick: where it lies and what it says."""

    place: float
    label: str


@dataclass(frozen=True)
class Line:
    """A series as drawn.

    Attributes:
        name: Of the series.
        style: Number of its colour, dashes and mark.
        path: SVG path data.
        marks: Places of the points that are marked.
    """

    name: str
    style: int
    path: str
    marks: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class LineChart:
    """A figure.

    Attributes:
        curves: What it shows.
        description: The same in words, for those who do not see it.
        x_ticks: Along the bottom.
        y_ticks: Along the left.
        lines: The series, in order.
    """

    curves: Curves
    description: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


def line_chart(curves: Curves) -> LineChart:
    """Lay out curves that share their axes."""
    thin = [thinned(series, MAX_POINTS) for series in curves.series]
    x_axis = _tight(axis_of(value for series in thin for value in series.x), thin)
    y_axis = axis_of([*curves.y_also, *(value for series in thin for value in series.y)])
    lines = [_line(series, number, x_axis, y_axis) for number, series in enumerate(thin)]
    return LineChart(
        curves=curves,
        description=describe(curves),
        x_ticks=tuple(Tick(x_axis.place(t, LEFT, RIGHT), tick_label(t)) for t in x_axis.ticks),
        y_ticks=tuple(
            Tick(y_axis.place(t, BOTTOM, TOP), tick_label(t, is_share=curves.is_share))
            for t in y_axis.ticks
        ),
        lines=tuple(lines),
    )


def thinned(series: Series, most: int) -> Series:
    """Return at most `most` points, each the mean of a bin of neighbouring ones."""
    if len(series.x) <= most:
        return series
    bins = [np.array_split(np.asarray(values, float), most) for values in (series.x, series.y)]
    x, y = ([float(part.mean()) for part in parts] for parts in bins)
    return replace(series, x=x, y=y)


def describe(curves: Curves) -> str:
    """Say in words where each series begins and ends, and its extremes."""
    parts = []
    for series in curves.series:
        finite = [value for value in series.y if math.isfinite(value)]
        if not finite:
            parts.append(f"{series.name}: no values.")
            continue
        first, last, low, high = (
            _shown(value, curves) for value in (finite[0], finite[-1], min(finite), max(finite))
        )
        parts.append(
            f"{series.name}: {len(finite)} points from {first} to {last}, between {low} and {high}."
        )
    return f"{curves.y_label} against {curves.x_label}. " + " ".join(parts)


def _shown(value: float, curves: Curves) -> str:
    return f"{100 * value:.1f}%" if curves.is_share else f"{value:.4g}"


def _tight(axis: Axis, series: Sequence[Series]) -> Axis:
    """Let the axis end where the values end, not at the next tick."""
    values = [value for one in series for value in one.x]
    if not values or min(values) == max(values):
        return axis
    low, high = min(values), max(values)
    return Axis(low, high, tuple(tick for tick in axis.ticks if low <= tick <= high))


def _line(series: Series, number: int, x_axis: Axis, y_axis: Axis) -> Line:
    points = [
        (round(x_axis.place(x, LEFT, RIGHT), 1), round(y_axis.place(y, BOTTOM, TOP), 1))
        if math.isfinite(y)
        else None
        for x, y in zip(series.x, series.y, strict=True)
    ]
    there = [point for point in points if point is not None]
    marks = there if len(there) <= _MAX_MARKS else there[-1:]
    return Line(series.name, number, "".join(_path(points)), tuple(marks))


def _path(points: Sequence[tuple[float, float] | None]) -> Iterator[str]:
    """Yield path data; after a gap a new piece begins."""
    pen_is_down = False
    for point in points:
        if point is not None:
            yield f"{'L' if pen_is_down else 'M'}{point[0]:g} {point[1]:g}"
        pen_is_down = point is not None
