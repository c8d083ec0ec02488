"""The curves of a comparison: accuracy on held-out training images as training goes on.

Methods have losses of their own, which cannot be drawn on one axis; this check is the same for all.
A figure has at most seven methods, as many as there are colors and dashes; all have one vertical
axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean

from distill.comparison.cells import Cell
from distill.comparison.state import DONE, Outcome
from distill.reports.content import Curves, Series

_MOST = 7


def held_out_curves(
    cells: Sequence[Cell],
    outcomes: Mapping[str, Outcome | None],
    student: str,
    teacher: str,
) -> list[Curves]:
    """Return the figures of one student and one teacher, each method's the mean over its seeds."""
    by_method: dict[str, list[Sequence[tuple[int, float]]]] = {}
    for cell in cells:
        outcome = outcomes[cell.name]
        is_mine = (cell.student, cell.teacher) == (student, teacher) and cell.tuning is None
        if is_mine and outcome is not None and outcome.state == DONE:
            by_method.setdefault(cell.method.name, []).append(outcome.holdout_curve)
    series = [
        Series(name, *zip(*points, strict=True))
        for name, runs in by_method.items()
        if (points := _mean(runs))
    ]
    size = math.ceil(len(series) / math.ceil(len(series) / _MOST)) if series else 1
    figures = [series[start : start + size] for start in range(0, len(series), size)]
    extremes = [extreme(one.y) for one in series for extreme in (min, max)]
    return [
        Curves(
            "Held-out training images" + (f", {number} of {len(figures)}" if figures[1:] else ""),
            "epoch",
            "nearest-neighbor accuracy, mean over seeds",
            part,
            y_also=extremes,
        )
        for number, part in enumerate(figures, start=1)
    ]


def _mean(runs: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Return the mean over runs at the epochs that all of them have."""
    by_epoch: dict[int, list[float]] = {}
    for run in runs:
        for epoch, value in run:
            by_epoch.setdefault(epoch, []).append(value)
    return [(epoch, mean(v)) for epoch, v in sorted(by_epoch.items()) if len(v) == len(runs)]
