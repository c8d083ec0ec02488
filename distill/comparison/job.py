"""Compares methods on a grid of students, teachers and seeds, with equal budgets.

Every run is an ordinary one of `distill train`, measured by what training measures and by the
linear classifier; all share the teacher's embeddings on disk, so that it sees each image once.
State is small files renamed into place (`distill.comparison.state`): whatever ends the
program, the same command with --resume goes on.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock

import distill
from distill.comparison.cells import Cell, cells_of, selected
from distill.comparison.grid import Grid
from distill.comparison.options import CompareOptions
from distill.comparison.prepare import require_runnable
from distill.comparison.read_grid import read_grid
from distill.comparison.record import comparison_record
from distill.comparison.remaining_time import seconds_left
from distill.comparison.reopen import failed_runs, reopen, unmeasured_runs
from distill.comparison.results import read_results
from distill.comparison.same import require_same_grid
from distill.comparison.sitting import SittingOptions, run_cells
from distill.comparison.slots import slot_environments
from distill.comparison.state import (
    FAILED,
    GRID,
    STARTED,
    ComparisonDirectory,
    Outcome,
    folder_size,
)
from distill.errors import DistillError
from distill.reports.grid_content import GridContent
from distill.reports.grid_markdown import grid_markdown
from distill.reports.page import Made, grid_page

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison has come to.

    Attributes:
        output: Its directory, with comparison.json, comparison.md and comparison.html.
        content: Tables and all else that the page says.
        num_runs: That the grid (or `--only`) asks for.
        num_open: Of them not made yet.
        num_failed: Of them failed.
        stopped_by: What ended the sitting early: a signal's name or `--stop-after`; None otherwise.
        seconds_left: What the open runs will take; None when that is not known.
        num_bytes: Size of the directory.
    """

    output: Path
    content: GridContent
    num_runs: int
    num_open: int
    num_failed: int
    stopped_by: str | None
    seconds_left: float | None
    num_bytes: int


@dataclass(frozen=True)
class Plan:
    """A grid with its runs.

    Attributes:
        grid: As read.
        text: As written in the file.
        cells: All runs.
        chosen: Those to be made now.
        directory: Where.
    """

    grid: Grid
    text: str
    cells: Mapping[str, Cell]
    chosen: Sequence[Cell]
    directory: ComparisonDirectory

    def outcomes(self) -> list[tuple[Cell, Outcome | None]]:
        """Return the runs to be made with what became of each."""
        return [(cell, self.directory.outcome(cell.name)) for cell in self.chosen]


def compare(grid_or_directory: Path, options: CompareOptions) -> ComparisonResult:
    """Make a comparison, or go on with one.

    Args:
        grid_or_directory: The YAML file of the grid, or the directory of a comparison.
        options: How.

    Raises:
        DistillError: A grid or a run that cannot be made; runs on the disk that were made with
            other options; a directory that holds something else, or is in use.
    """
    plan = make_plan(grid_or_directory, options)
    if options.table:
        require_same_grid(plan.cells, plan.directory)
        return _result(plan, None)
    require_runnable(plan.chosen, plan.directory)
    if options.dry_run:
        failed, unmeasured = _checked_for_reopening(plan, options)
        content = read_results(plan.grid, list(plan.cells.values()), plan.directory)
        return _summary(plan, content, None, reopened=[*failed, *unmeasured])
    plan.directory.make()
    lock = filelock.FileLock(plan.directory.path / ".lock", blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise DistillError(
            f"{plan.directory.path} is in use by another process; wait for its end"
        ) from error
    try:
        failed, unmeasured = _checked_for_reopening(plan, options)
        plan.directory.write_text(GRID, plan.text)
        reopen(failed, unmeasured, plan.cells, plan.directory)
        stopped_by = run_cells(
            plan.chosen,
            plan.cells,
            plan.directory,
            SittingOptions(options.stop_after, options.keep_checkpoints, options.jobs),
            linear=plan.grid.linear,
            on_change=lambda: _write(plan),
        )
        return _result(plan, stopped_by)
    finally:
        lock.release()


def make_plan(grid_or_directory: Path, options: CompareOptions) -> Plan:
    """Read a grid and say which runs are to be made; writes nothing.

    Raises:
        DistillError: See `compare`.
    """
    is_directory = grid_or_directory.is_dir()
    file = grid_or_directory / GRID if is_directory else grid_or_directory
    if is_directory and not file.exists():
        raise DistillError(
            f"{grid_or_directory} holds no comparison; name one, or the YAML file of a grid"
        )
    grid = read_grid(file)
    output = options.output or (grid_or_directory if is_directory else Path("runs") / file.stem)
    _require_sensible(options)
    _require_usable(output, options)
    cells = cells_of(grid)
    return Plan(
        grid=grid,
        text=file.read_text(encoding="utf-8"),
        cells={cell.name: cell for cell in cells},
        chosen=selected(cells, options.only),
        directory=ComparisonDirectory(output),
    )


def _checked_for_reopening(plan: Plan, options: CompareOptions) -> tuple[list[Cell], list[Cell]]:
    """Refuse runs of another grid; return failed and unmeasured ones that are to be opened again.

    Nothing is written.
    """
    chosen, cells, directory = plan.chosen, plan.cells, plan.directory
    failed = failed_runs(chosen, cells, directory) if options.retry_failed else []
    require_same_grid(cells, directory, retried={cell.name for cell in failed})
    return failed, unmeasured_runs(chosen, directory, linear=plan.grid.linear)


def _require_sensible(options: CompareOptions) -> None:
    if options.stop_after is not None and not options.stop_after > 0:
        raise DistillError(f"--stop-after is {options.stop_after}, it must be positive (minutes)")
    if options.table and options.dry_run:
        raise DistillError("--table does not go with --dry-run; leave one out")
    slot_environments(options.jobs)


def _require_usable(output: Path, options: CompareOptions) -> None:
    """Refuse a directory that holds something else, or a comparison that was not asked for."""
    if output.exists() and not output.is_dir():
        raise DistillError(f"--output {output} is a file; name a directory")
    holds_comparison = (output / GRID).exists()
    if options.table and not holds_comparison:
        raise DistillError(f"{output} holds no comparison; --table needs one")
    if holds_comparison and not (options.resume or options.table or options.dry_run):
        raise DistillError(
            f"{output} holds a comparison already; go on with --resume or choose another --output"
        )
    leftovers = {"runs", "cells", ".lock"}  # of one that was killed before it wrote its grid
    if output.is_dir() and not holds_comparison:
        others = [entry.name for entry in output.iterdir() if entry.name not in leftovers]
        if others:
            raise DistillError(
                f"{output} is not empty and holds no comparison; choose another --output"
            )


def _result(plan: Plan, stopped_by: str | None) -> ComparisonResult:
    return _summary(plan, _write(plan), stopped_by)


def _summary(
    plan: Plan, content: GridContent, stopped_by: str | None, reopened: Collection[Cell] = ()
) -> ComparisonResult:
    names = {cell.name for cell in reopened}
    states = [
        None if one is None or cell.name in names else one.state for cell, one in plan.outcomes()
    ]
    return ComparisonResult(
        output=plan.directory.path,
        content=content,
        num_runs=len(plan.chosen),
        num_open=sum(state in (None, STARTED) for state in states),
        num_failed=states.count(FAILED),
        stopped_by=stopped_by,
        seconds_left=seconds_left(plan.chosen, plan.directory),
        num_bytes=folder_size(plan.directory.path),
    )


def _write(plan: Plan) -> GridContent:
    """Write the numbers, the tables and the page of what is there."""
    cells, directory = list(plan.cells.values()), plan.directory
    content = read_results(plan.grid, cells, directory)
    numbers = comparison_record(content, cells, plan.cells, directory)
    made = Made(time.strftime("%Y-%m-%d %H:%M %Z"), distill.__version__)
    directory.write_text("comparison.json", json.dumps(numbers, indent=1) + "\n")
    directory.write_text("comparison.md", grid_markdown(content))
    directory.write_text("comparison.html", grid_page(content, made))
    strangers = {file.stem for file in (directory.path / "cells").glob("*.json")} - set(plan.cells)
    if strangers:
        logger.info(
            f"{len(strangers)} runs on the disk are not part of the grid and are left alone"
        )
    return content
