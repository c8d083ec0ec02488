"""The figures of a report as geometry; the templates write them down as SVG.

- Line charts: series differ in color, in dashes and in the marks at their points, so that nobody
  needs colors. Long series are thinned by the means of bins, which hides single spikes.
- Bar charts: bars lie, each with its name above it, so that long names fit a phone. They start at
  zero, since their lengths are compared; lines across all bars show what to compare them with.
- Heat maps: up to `MAX_CELLS` clusters and classes are drawn cell by cell with their names; larger
  tables become one transparent picture with a pixel a cell.
- Scatter plots: seven colors and six shapes tell 42 classes apart; further ones repeat, and the
  legend says so.

Shapes: K rows, C columns, N points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from distill.reports.comparison_tables import Spread
from distill.reports.content import Curves, Series, png_uri

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
        style: Number of its color.
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
        description=describe_bars(title, bars, levels),
        height=bottom + 26,
        bottom=bottom,
        ticks=tuple(Tick(axis.place(tick, LEFT, RIGHT), tick_label(tick)) for tick in axis.ticks),
        bars=tuple(_bar(name, one, row, axis) for row, (name, one) in enumerate(bars)),
        levels=tuple(
            Level(name, f"{value:.3f}", number + 1, axis.place(value, LEFT, RIGHT))
            for number, (name, value) in enumerate(levels)
        ),
    )


def describe_bars(
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


MAX_CELLS = 40
_MAX_WRITTEN = 16  # rows and columns up to which numbers are written into the cells
_CELL, _LETTER = 34, 7.0  # units of the figure
_HUE = (36, 118, 199)  # legible on both backgrounds
_MAX_NAME_HEAT_MAP = 14


@dataclass(frozen=True)
class Cell:
    """One cell: its row and column, its share, and what is written into it."""

    row: int
    column: int
    share: float
    text: str


@dataclass(frozen=True)
class HeatMap:
    """A figure.

    Attributes:
        rows: Names, cut to size.
        columns: Likewise.
        cells: Those above 0.5 %; empty for a large table.
        picture: Data URI, for a large table.
        cell: Side of a cell in units of the figure.
        left: Space for the names of rows.
        top: Space for the names of columns.
        is_turned: Whether these are too long to be written level.
        description: In words.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    picture: str | None
    cell: float
    left: int
    top: int
    is_turned: bool
    description: str

    @property
    def width(self) -> float:
        """Of the figure."""
        return self.left + self.cell * len(self.columns) + 2 + self._overhang

    @property
    def _overhang(self) -> float:
        """Of the last turned name over the last column."""
        return max(0.0, 0.8 * self.top - self.cell / 2) if self.is_turned else 0.0

    @property
    def height(self) -> float:
        """Of the figure."""
        return self.top + self.cell * len(self.rows) + 2


def heat_map(shares: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> HeatMap:
    """Lay out a table.

    Args:
        shares: (K, C), 0 to 1; what was matched lies on the diagonal.
        rows: K names.
        columns: C names.
    """
    is_small = max(shares.shape) <= MAX_CELLS
    rows_cut, columns_cut = tuple(map(_cut, rows)), tuple(map(_cut, columns))
    is_turned = max(map(len, columns_cut)) > 4
    letters = round(_LETTER * max(map(len, columns_cut)) * 0.8) if is_turned else 14
    return HeatMap(
        rows=rows_cut,
        columns=columns_cut,
        cells=tuple(_cells(shares)) if is_small else (),
        picture=None if is_small else _picture(shares),
        cell=_CELL if is_small else 600 / max(shares.shape),
        left=16 + round(_LETTER * max(map(len, rows_cut))) if is_small else 1,
        top=16 + letters if is_small else 1,
        is_turned=is_turned,
        description=_describe(shares, rows, columns),
    )


def _cut(name: str) -> str:
    return name if len(name) <= _MAX_NAME_HEAT_MAP else name[: _MAX_NAME_HEAT_MAP - 1] + "…"


def _cells(shares: np.ndarray) -> list[Cell]:
    written = max(shares.shape) <= _MAX_WRITTEN
    return [
        Cell(
            int(row),
            int(column),
            round(float(shares[row, column]), 3),
            f"{100 * shares[row, column]:.0f}" if written else "",
        )
        for row, column in np.argwhere(shares >= 0.005)
    ]


def _picture(shares: np.ndarray) -> str:
    pixels = np.zeros((*shares.shape, 4), np.uint8)
    pixels[..., :3] = _HUE
    # Shares of a thousandth would be invisible: the root lifts them.
    pixels[..., 3] = np.rint(255 * np.sqrt(np.clip(shares, 0, 1)))
    return png_uri(pixels)


def _describe(shares: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> str:
    text = f"Shares of {len(columns)} classes in {len(rows)} clusters, matched pairs in order."
    if len(shares) and max(shares.shape) <= _MAX_WRITTEN:
        largest = shares.argmax(axis=1)
        text += " Largest class of each: " + ", ".join(
            f"{row} {columns[column]} {100 * shares[number, column]:.0f}%"
            for number, (row, column) in enumerate(zip(rows, largest, strict=True))
        )
    return text


LINE_WIDTH, HEIGHT = 360, 240
LINE_LEFT, LINE_RIGHT, LINE_TOP, BOTTOM = 48, 350, 12, 194
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
        style: Number of its color, dashes and mark.
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
        description=describe_curves(curves),
        x_ticks=tuple(
            Tick(x_axis.place(t, LINE_LEFT, LINE_RIGHT), tick_label(t)) for t in x_axis.ticks
        ),
        y_ticks=tuple(
            Tick(y_axis.place(t, BOTTOM, LINE_TOP), tick_label(t, is_share=curves.is_share))
            for t in y_axis.ticks
        ),
        lines=tuple(lines),
    )


def thinned(series: Series, most: int) -> Series:
    """Return at most `most` points, each the mean of a bin of neighboring ones."""
    if len(series.x) <= most:
        return series
    bins = [np.array_split(np.asarray(values, float), most) for values in (series.x, series.y)]
    x, y = ([float(part.mean()) for part in parts] for parts in bins)
    return replace(series, x=x, y=y)


def describe_curves(curves: Curves) -> str:
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
        (
            round(x_axis.place(x, LINE_LEFT, LINE_RIGHT), 1),
            round(y_axis.place(y, BOTTOM, LINE_TOP), 1),
        )
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


SIDE, MARGIN = 600, 14
NUM_COLORS = 7
# Paths of a mark around the place where it is moved to; all of about the same area.
MARKS = (
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",  # disc
    "m-3.6-3.6h7.2v7.2h-7.2z",  # square
    "m0-5l4.8 8.4h-9.6z",  # triangle
    "m0-5.2l5.2 5.2l-5.2 5.2l-5.2-5.2z",  # diamond
    "m-1.5-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",  # cross
    "m0 5l4.8-8.4h-9.6z",  # triangle on its tip
)


@dataclass(frozen=True)
class PointGroup:
    """The points of one class.

    Attributes:
        name: Of the class.
        size: Number of points.
        color: 0 to 6.
        mark: Path of its mark.
        path: All its marks.
    """

    name: str
    size: int
    color: int
    mark: str
    path: str


@dataclass(frozen=True)
class Scatter:
    """A figure.

    Attributes:
        groups: By class.
        description: In words.
        repeats: Whether two classes look the same.
    """

    groups: tuple[PointGroup, ...]
    description: str
    repeats: bool


def scatter(points: np.ndarray, labels: np.ndarray | None, classes: Sequence[str]) -> Scatter:
    """Lay out points.

    Args:
        points: (N, 2), any scale; both directions keep their proportion.
        labels: (N,) classes; None for one group.
        classes: Names by label.
    """
    placed = _placed(points)
    if labels is None:
        labels, classes = np.zeros(len(points), np.int64), ["image"]
    groups = [
        _group(classes[label], int(number), placed[labels == label])
        for number, label in enumerate(np.unique(labels))
    ]
    of_classes = f" of {len(groups)} classes" if len(groups) > 1 else ""
    return Scatter(
        tuple(groups),
        f"{len(points):,} points{of_classes}; near each other are images with similar embeddings.",
        repeats=len(groups) > NUM_COLORS * len(MARKS),
    )


def _placed(points: np.ndarray) -> np.ndarray:
    """Scale to the figure, the same in both directions, and center."""
    low, high = points.min(axis=0), points.max(axis=0)
    scale = (SIDE - 2 * MARGIN) / max(float((high - low).max()), 1e-12)
    return (points - (low + high) / 2) * scale + SIDE / 2


def _group(name: str, number: int, points: np.ndarray) -> PointGroup:
    # Neighboring numbers differ in both, and 7 and 6 have no common factor: 42 pairs.
    mark = MARKS[number % len(MARKS)]
    path = "".join(f"M{x:.1f} {y:.1f}{mark}" for x, y in points)
    return PointGroup(name, len(points), number % NUM_COLORS, mark, path)
