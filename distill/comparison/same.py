"""Keeps runs that were made under other options out of a comparison that goes on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from distill.comparison.cells import Cell, asked_options
from distill.comparison.state import FAILED, ComparisonDirectory, Outcome
from distill.comparison.tuning import Tuned, tuned
from distill.errors import DistillError

_PLACES = ("data", "teacher_weights", "student_weights")


def require_same_grid(
    cells: Mapping[str, Cell], directory: ComparisonDirectory, *, retried: Collection[str] = ()
) -> None:
    """Refuse to mix runs that were made under other options with those that are to come.

    Args:
        cells: All of the grid by name.
        directory: Of the comparison.
        retried: Names of failed runs that are made again, whatever they were made with.

    Raises:
        DistillError: Naming the run, the option and both values; or what is there is of another
            grid altogether.
    """
    _require_kin(cells, directory)
    for cell in cells.values():
        outcome = directory.outcome(cell.name)
        if outcome is None or cell.name in retried:
            continue
        choice = tuned(cell, cells, directory)
        _require_same_options(cell, outcome, choice, directory)
        is_open = choice.values is None and choice.error is None
        if is_open and outcome.state != FAILED:
            open_run = next(name for name in cell.tuned_by if _is_open(name, directory))
            raise DistillError(
                f"{directory.run(cell.name)} was made with what tuning chose, and now there is one "
                f"more value to try, {open_run}; take it out of tune, choose another --output, or "
                f"{_to_make_anew(cell, directory)}"
            )


def _require_kin(cells: Mapping[str, Cell], directory: ComparisonDirectory) -> None:
    there = sorted(file.stem for file in (directory.path / "cells").glob("*.json"))
    if there and cells.keys().isdisjoint(there):
        raise DistillError(
            f"{directory.path} holds another comparison, none of whose {len(there)} runs (such as "
            f"{there[0]}) is in the grid; choose another --output"
        )


def _require_same_options(
    cell: Cell, outcome: Outcome, choice: Tuned, directory: ComparisonDirectory
) -> None:
    # What is still to be chosen cannot be compared.
    tuning = () if choice.values is not None else cell.method.tune
    now = asked_options(cell, choice.values or {})
    different = difference(outcome.asked, {k: v for k, v in now.items() if k not in tuning})
    if different is None:
        return
    name, was, wanted = different
    moved = ", leave a link in the old place if it has only moved" if name in _PLACES else ""
    failed = ", or retry it with --retry-failed" if outcome.state == FAILED else ""
    raise DistillError(
        f"{directory.run(cell.name)} was made with {name} {was} and the grid now asks for "
        f"{wanted}; change the grid back{moved}, choose another --output, or "
        f"{_to_make_anew(cell, directory)}{failed}"
    )


def _to_make_anew(cell: Cell, directory: ComparisonDirectory) -> str:
    return f"remove that folder and {directory.outcome_file(cell.name)} to make the run anew"


def _is_open(name: str, directory: ComparisonDirectory) -> bool:
    outcome = directory.outcome(name)
    return outcome is None or outcome.is_open


def difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first option that differs; an option that did not exist then is no difference."""
    for name, value in now.items():
        if name in was and was[name] != value:
            return name, was[name], value
    return None
