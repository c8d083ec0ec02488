"""Chooses between tuning runs: the highest accuracy on held-out training images, never on val.

The score is what a run's own check says at its end (`holdout_nn_accuracy` of log.jsonl): held-out
training images looked up among those that were trained on. Of equal scores the value that the grid
lists first is taken. Runs that failed lose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.comparison.cells import Cell
from distill.comparison.state import STARTED, ComparisonDirectory


@dataclass(frozen=True)
class Tuned:
    """What tuning says about a cell.

    Attributes:
        values: The chosen options; None while a tuning run is missing, or when all failed.
        error: Why nothing can be chosen though all runs have ended; None otherwise.
    """

    values: Mapping[str, Any] | None
    error: str | None = None


def tuned(cell: Cell, cells: Mapping[str, Cell], directory: ComparisonDirectory) -> Tuned:
    """Return what the tuning runs of a cell chose.

    Args:
        cell: Any; one that nothing is tuned for gets no further options.
        cells: All of the grid by name.
        directory: Of the comparison.
    """
    if not cell.tuned_by:
        return Tuned({})
    outcomes = [directory.outcome(name) for name in cell.tuned_by]
    if any(outcome is None or outcome.state == STARTED for outcome in outcomes):
        return Tuned(None)
    scores = [outcome.holdout_nn_accuracy if outcome else None for outcome in outcomes]
    best = best_score(scores)
    if best is None:
        return Tuned(None, "no tuning run of it ended with an accuracy on held-out images")
    return Tuned(cells[cell.tuned_by[best]].tuning or {})


def best_score(scores: Sequence[float | None]) -> int | None:
    """Return the position of the highest score, the first of equals; None without any."""
    there = [
        position
        for position, score in enumerate(scores)
        if score is not None and math.isfinite(score)
    ]
    return max(there, key=lambda position: (scores[position], -position), default=None)
