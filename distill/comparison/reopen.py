"""Opens runs again that have ended: failed ones, and those that a measure was added to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from distill.comparison.cells import Cell, asked_options
from distill.comparison.child import is_trained
from distill.comparison.same import difference
from distill.comparison.state import DONE, FAILED, STARTED, ComparisonDirectory
from distill.comparison.tuning import tuned


def failed_runs(
    chosen: Sequence[Cell], cells: Mapping[str, Cell], directory: ComparisonDirectory
) -> list[Cell]:
    """Return the failed runs that can be made again: all but tuning that a finished run stands on.

    Args:
        chosen: Runs that are to be made in this sitting.
        cells: All of the grid by name.
        directory: Of the comparison.
    """
    in_use = {
        name
        for cell in cells.values()
        if (found := directory.outcome(cell.name)) is not None and found.state == DONE
        for name in cell.tuned_by
    }
    return [
        cell
        for cell in chosen
        if (found := directory.outcome(cell.name)) is not None
        and found.state == FAILED
        and cell.name not in in_use
    ]


def unmeasured_runs(
    chosen: Sequence[Cell], directory: ComparisonDirectory, *, linear: bool
) -> list[Cell]:
    """Return the finished runs whose student is there and lacks a measure that the grid asks for.

    Args:
        chosen: Runs that are to be made in this sitting.
        directory: Of the comparison.
        linear: Whether the grid asks for the linear classifier.
    """
    return [
        cell
        for cell in chosen
        if linear
        and cell.tuning is None
        and (found := directory.outcome(cell.name)) is not None
        and found.state == DONE
        and "linear_accuracy" not in found.metrics
        and is_trained(directory.run(cell.name))
    ]


def reopen(
    failed: Sequence[Cell],
    unmeasured: Sequence[Cell],
    cells: Mapping[str, Cell],
    directory: ComparisonDirectory,
) -> None:
    """Let runs be made again: a failed one from its last checkpoint, or anew under other options.

    Args:
        failed: As `failed_runs` returns them.
        unmeasured: As `unmeasured_runs` returns them; their training is kept.
        cells: All of the grid by name.
        directory: Of the comparison.
    """
    for cell in failed:
        outcome, chosen = directory.outcome(cell.name), tuned(cell, cells, directory).values
        assert outcome is not None
        if difference(outcome.asked, asked_options(cell, chosen or {})) is None:
            directory.outcome_file(cell.name).unlink()
        else:
            directory.forget(cell.name)
    for cell in unmeasured:
        outcome = directory.outcome(cell.name)
        assert outcome is not None
        directory.write(cell.name, replace(outcome, state=STARTED))
