"""How long the runs that are left will take, from those that are made.

A run takes what runs of the same method and student took on average, else of the same student, else
any, in proportion to its epochs. A teacher's first run embeds the images, too, and counts only
until there are others. Before the first run is made nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from distill.comparison.cells import Cell, budget_of
from distill.comparison.state import DONE, STARTED, ComparisonDirectory


def seconds_left(cells: Sequence[Cell], directory: ComparisonDirectory) -> float | None:
    """Return how long the runs that are not made will take; None when none has been made."""
    made: list[tuple[Cell, float]] = []
    left: list[Cell] = []
    for cell in cells:
        outcome = directory.outcome(cell.name)
        if outcome is None or outcome.state == STARTED:
            left.append(cell)
        elif outcome.state == DONE:
            made.append((cell, outcome.seconds / _num_epochs(cell)))
    expected = [seconds_per_epoch(cell, _without_first(made)) for cell in left]
    known = [
        _num_epochs(cell) * seconds
        for cell, seconds in zip(left, expected, strict=True)
        if seconds is not None
    ]
    return sum(known) if len(known) == len(expected) else None


def seconds_per_epoch(cell: Cell, made: Sequence[tuple[Cell, float]]) -> float | None:
    """Return how long a run will take per epoch, from what others took; None without any."""
    alike = [seconds for one, seconds in made if _alike(one) == _alike(cell)]
    same_student = [seconds for one, seconds in made if one.student == cell.student]
    for found in (alike, same_student, [seconds for _, seconds in made]):
        if found:
            return mean(found)
    return None


def _alike(cell: Cell) -> tuple[str, str]:
    return cell.method.name, cell.student


def _without_first(made: Sequence[tuple[Cell, float]]) -> list[tuple[Cell, float]]:
    """Leave out each teacher's first run, which embedded the images, where there are others."""
    first = {cell.teacher: cell for cell, _ in reversed(made)}
    return [one for one in made if first[one[0].teacher] is not one[0]] or list(made)


def _num_epochs(cell: Cell) -> float:
    """Return a run's length; a recipe's, where the grid leaves it to one."""
    return float(cell.options.get("epochs") or budget_of(cell)["epochs"] or 1)
