"""How long the runs that are left will take, from those that are made.

A run takes what runs of the same method and student took on average, else of the same student, else
any, in proportion to its epochs. A teacher's first run embeds the images, too, and counts only
until there are others. Before the first run is made nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from distill.jobs.comparison.cells import Cell
from distill.jobs.comparison.state import DONE, STARTED, ComparisonDirectory


def seconds_left(cells: Sequence[Cell], directory: ComparisonDirectory) -> float | None:
    """Return how long the runs that are not made will take; None when none has been made."""
    made: list[tuple[Cell, float]] = []
    left: list[Cell] = []
    for cell in cells:
        outcome = directory.outcome(cell.name)
        if outcome is None or outcome.state == STARTED:
            left.append(cell)
        elif outcome.state == DONE:
            made.append((cell, outcome.seconds))
    expected = [expected_seconds(cell, _without_first(made)) for cell in left]
    known = [seconds for seconds in expected if seconds is not None]
    return sum(known) if len(known) == len(expected) else None


def expected_seconds(cell: Cell, made: Sequence[tuple[Cell, float]]) -> float | None:
    """Return how long a run will take, from runs with their seconds; None without any."""
    alike = [one for one in made if (one[0].method.name, one[0].student) == cell.place[:2]]
    same_student = [one for one in made if one[0].student == cell.student]
    for found in (alike, same_student, made):
        if found:
            return _num_epochs(cell) * mean(seconds / _num_epochs(one) for one, seconds in found)
    return None


def _without_first(made: Sequence[tuple[Cell, float]]) -> list[tuple[Cell, float]]:
    """Leave out each teacher's first run, which embedded the images, where there are others."""
    first = {cell.teacher: cell for cell, _ in reversed(made)}
    return [one for one in made if first[one[0].teacher] is not one[0]] or list(made)


def _num_epochs(cell: Cell) -> float:
    return float(cell.options.get("epochs") or 1)
