"""Keeps runs that were made under other options out of a comparison that goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.errors import DistillError
from distill.jobs.comparison.cells import Cell, asked_options
from distill.jobs.comparison.state import DONE, FAILED, ComparisonDirectory
from distill.jobs.comparison.tuning import tuned


def require_same_grid(
    cells: Mapping[str, Cell], directory: ComparisonDirectory, *, retry_failed: bool
) -> None:
    """Refuse to mix runs that were made under other options with those that are to come.

    Failed runs are forgotten here when they are to be made again, whatever they were made with.

    Raises:
        DistillError: Naming the run, the option and both values.
    """
    in_use = {
        name
        for cell in cells.values()
        if (found := directory.outcome(cell.name)) is not None and found.state == DONE
        for name in cell.tuned_by
    }
    for cell in cells.values():
        outcome = directory.outcome(cell.name)
        chosen = tuned(cell, cells, directory).values
        if outcome is None or (chosen is None and outcome.state != FAILED):
            continue
        different = _difference(outcome.asked, asked_options(cell, chosen or {}))
        if outcome.state == FAILED and retry_failed and cell.name not in in_use:
            if different is None:  # it goes on from its last checkpoint
                directory.outcome_file(cell.name).unlink()
            else:
                directory.forget(cell.name)
        elif different is not None and chosen is not None:
            name, was, now = different
            failed = ", or retry it with --retry-failed" if outcome.state == FAILED else ""
            raise DistillError(
                f"{directory.run(cell.name)} was made with {name} {was} and the grid now asks for "
                f"{now}; change the grid back, choose another --output, or remove that folder and "
                f"{directory.outcome_file(cell.name)} to make it anew{failed}"
            )


def _difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first option that differs; an option that did not exist then is no difference."""
    for name, value in now.items():
        if name in was and was[name] != value:
            return name, was[name], value
    return None
