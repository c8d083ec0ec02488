"""Compares methods on a grid of students, teachers and seeds, with equal budgets.

Every run is one of `distill train`, measured by what training measures and by the linear
classifier; all share the teacher's embeddings on disk, so that it sees each image once. State is
small files renamed into place (`distill.comparison.trial`): whatever ends the program, the same
command with --resume goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import filelock
import yaml
from annotated_types import Ge, Gt

from distill.comparison.grid import read_grid
from distill.comparison.results import read_results, read_results_file, results_json
from distill.comparison.runner import Runner, require_runnable, seconds_left
from distill.comparison.trial import (
    PLACES,
    Comparison,
    Trial,
    matching,
    require_equal_budgets,
)
from distill.comparison.worker import is_trained
from distill.config import check_options
from distill.errors import DistillError
from distill.reports.comparison_tables import ComparisonContent, comparison_markdown
from distill.reports.page import grid_page

logger = logging.getLogger(__name__)

GRID, RESULTS = "grid.yaml", "comparison.json"


@dataclass(frozen=True)
class CompareOptions:
    """How a comparison is made."""

    output: Path | None = None
    """Directory of the comparison; None: under runs/, named after the grid's file."""
    resume: bool = False
    """Go on with what lies in the output directory, if anything does."""
    stop_after: Annotated[float, Gt(0)] | None = None
    """Minutes after which to end, with a checkpoint of the run in progress."""
    jobs: Annotated[int, Ge(1)] = 1
    """Runs at a time. Each gets its share of the cores and, where there are several, a GPU."""
    only: str | None = None
    """Make only runs whose name holds this shell pattern, and the tuning that they need."""
    retry_failed: bool = False
    """Make failed runs again; goes with --resume."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of finished runs, several times the size of all else."""
    dry_run: bool = False
    """Check the grid, print the runs and how long they will take, and stop."""
    table: bool = False
    """Write tables and page from what is there, without training."""


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison has come to.

    Attributes:
        output: Its directory, with comparison.json, comparison.md and comparison.html; None: it was
            read from a file, and nothing was written.
        content: Tables and all else that the page says.
        num_runs: That the grid (or `--only`) asks for.
        num_open: Of them not made yet.
        num_failed: Of them failed.
        stopped_by: What ended it early: a signal's name or `--stop-after`; None otherwise.
        seconds_left: What the open runs will take; None when that is not known.
        num_bytes: Size of the directory.
    """

    output: Path | None
    content: ComparisonContent
    num_runs: int
    num_open: int
    num_failed: int
    stopped_by: str | None
    seconds_left: float | None
    num_bytes: int


def compare(source: Path, options: CompareOptions) -> ComparisonResult:
    """Make a comparison, go on with one, or make the tables of what is there.

    Args:
        source: The YAML file of the grid, the directory of a comparison, or its comparison.json,
            whatever that is called now.
        options: How.

    Raises:
        DistillError: A grid or a run that cannot be made; runs on the disk that were made with
            other options; a directory that holds something else, or is in use.
    """
    check_options(options)
    if options.table and options.dry_run:
        raise DistillError("--table does not go with --dry-run; leave one out")
    comparison = open_comparison(source, options)
    trials = matching(comparison.trials, options.only)
    if options.table:
        if not _is_results_file(source) and not source.is_dir():  # these bring their own grid
            require_same_options(comparison)
        is_written = not _is_results_file(source) or options.output is not None
        return _result(comparison, trials, writes=is_written)
    require_equal_budgets(comparison.trials.values(), comparison.grid.source)
    require_runnable(comparison, trials)
    if options.dry_run:
        failed, unmeasured = _trials_to_reopen(comparison, trials, options)
        return _result(comparison, trials, writes=False, reopened=[*failed, *unmeasured])
    comparison.make()
    lock = filelock.FileLock(comparison.path / ".lock", blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise DistillError(
            f"{comparison.path} is in use by another process; wait for its end"
        ) from error
    try:
        comparison.load()
        failed, unmeasured = _trials_to_reopen(comparison, trials, options)
        comparison.adopt()
        if not source.is_dir():
            text = source.read_text(encoding="utf-8")
            if _is_results_file(source):
                text = yaml.safe_dump(comparison.grid.content, sort_keys=False)
            comparison.write_text(GRID, text)
        _reopen(comparison, failed, unmeasured)
        stopped_by = Runner(
            comparison,
            trials,
            stop_after=options.stop_after,
            jobs=options.jobs,
            keep_checkpoints=options.keep_checkpoints,
            on_change=lambda: _write(comparison),
        ).run()
        return _result(comparison, trials, stopped_by=stopped_by)
    finally:
        lock.release()


def open_comparison(source: Path, options: CompareOptions) -> Comparison:
    """Read a grid with what is known of its trials; writes nothing.

    Raises:
        DistillError: A source that is no comparison, or an output directory that cannot be used.
    """
    if _is_results_file(source):
        output = options.output or (None if options.table else Path("runs") / source.stem)
        if output is not None:
            _require_usable(output, replace(options, table=False))
        return read_results_file(source, output)
    file = source / GRID if source.is_dir() else source
    if source.is_dir() and not file.exists():
        raise DistillError(f"{source} holds no comparison; name one, or the YAML file of a grid")
    output = options.output or (source if source.is_dir() else Path("runs") / source.stem)
    _require_usable(output, options)
    return Comparison(read_grid(file), output)


def _is_results_file(source: Path) -> bool:
    return source.suffix == ".json" and not source.is_dir()


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
    leftovers = {"runs", "trials", "cells", ".lock"}  # of one that was killed early
    entries = {entry.name for entry in output.iterdir()} if output.is_dir() else set()
    if not holds_comparison and entries - leftovers:
        raise DistillError(
            f"{output} is not empty and holds no comparison; choose another --output"
        )


def _trials_to_reopen(
    comparison: Comparison, trials: Sequence[Trial], options: CompareOptions
) -> tuple[list[Trial], list[Trial]]:
    """Return failed trials that are to be made again, and finished ones that lack a measure.

    Tuning that a finished trial stands on is not made again. A finished trial can be measured while
    its student is there.

    Raises:
        DistillError: Trials on the disk were made with other options.
    """
    done = [trial for name, trial in comparison.trials.items() if comparison.state(name) == "done"]
    in_use = {name for trial in done for name in trial.tuned_by}
    failed = [
        trial
        for trial in trials
        if options.retry_failed
        and comparison.state(trial.name) == "failed"
        and trial.name not in in_use
    ]
    require_same_options(comparison, retried={trial.name for trial in failed})
    unmeasured = [
        trial
        for trial in trials
        if comparison.grid.linear
        and trial.tuning is None
        and trial in done
        and "linear_accuracy" not in comparison.statuses[trial.name].metrics
        and is_trained(comparison.run(trial.name))
    ]
    return failed, unmeasured


def _reopen(comparison: Comparison, failed: Sequence[Trial], unmeasured: Sequence[Trial]) -> None:
    """Open trials again: a failed one from its last checkpoint, or anew under other options."""
    for trial in failed:
        now = trial.identity(comparison.tuned_values(trial) or {})
        is_other = _difference(comparison.statuses[trial.name].options, now) is not None
        comparison.forget(trial.name, with_run=is_other)
    for trial in unmeasured:
        status = comparison.statuses[trial.name]
        comparison.set_status(trial.name, replace(status, state="started"))


def require_same_options(comparison: Comparison, *, retried: Collection[str] = ()) -> None:
    """Refuse to mix trials that were made under other options with those that are to come.

    Args:
        comparison: With what is on the disk.
        retried: Names of failed trials that are made again, whatever they were made with.

    Raises:
        DistillError: Naming the trial, the option and both values; or what is there is of another
            grid altogether.
    """
    there = sorted(file.stem for file in comparison.trials_folder.glob("*.json"))
    if there and comparison.trials.keys().isdisjoint(there):
        raise DistillError(
            f"{comparison.path} holds another comparison, none of whose {len(there)} runs (such as "
            f"{there[0]}) is in the grid; choose another --output"
        )
    for name, status in comparison.statuses.items():
        if name in retried:
            continue
        trial, file = comparison.trials[name], comparison.status_file(name)
        remedy = f"choose another --output, or remove that folder and {file} to make the run anew"
        chosen = comparison.tuned_values(trial)
        now = trial.identity(chosen or {})
        if chosen is None:  # what is still to be chosen cannot be compared
            now = {key: value for key, value in now.items() if key not in trial.method.tune}
        if (different := _difference(status.options, now)) is not None:
            option, was, wanted = different
            moved = ", leave a link in the old place if it has only moved"
            raise DistillError(
                f"{comparison.run(name)} was made with {option} {was} and the grid now asks for "
                f"{wanted}; change the grid back{moved if option in PLACES else ''}, {remedy}"
                f"{', or retry it with --retry-failed' if status.state == 'failed' else ''}"
            )
        untried = [one for one in trial.tuned_by if comparison.is_open(one)]
        if untried and status.state != "failed":
            raise DistillError(
                f"{comparison.run(name)} was made with what tuning chose, and now there is one "
                f"more value to try, {untried[0]}; take it out of tune, {remedy}"
            )


def _difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first option that differs; an option that did not exist then is no difference."""
    for name, value in now.items():
        if name in was and was[name] != value:
            return name, was[name], value
    return None


def _result(
    comparison: Comparison,
    trials: Sequence[Trial],
    *,
    stopped_by: str | None = None,
    writes: bool = True,
    reopened: Sequence[Trial] = (),
) -> ComparisonResult:
    content = _write(comparison) if writes else read_results(comparison)
    names = [trial.name for trial in trials if trial not in reopened]
    files = comparison.path.rglob("*") if writes else ()
    return ComparisonResult(
        output=comparison.path if writes else None,
        content=content,
        num_runs=len(trials),
        num_open=len(reopened) + sum(map(comparison.is_open, names)),
        num_failed=sum(comparison.state(name) == "failed" for name in names),
        stopped_by=stopped_by,
        seconds_left=seconds_left(comparison, trials),
        num_bytes=sum(file.stat().st_size for file in files if file.is_file()),
    )


def _write(comparison: Comparison) -> ComparisonContent:
    """Write the numbers, the tables and the page of what is there."""
    content = read_results(comparison)
    comparison.path.mkdir(parents=True, exist_ok=True)
    comparison.write_text(RESULTS, results_json(comparison, content))
    comparison.write_text("comparison.md", comparison_markdown(content))
    comparison.write_text("comparison.html", grid_page(content))
    names = {file.stem for file in comparison.trials_folder.glob("*.json")}
    if others := len(names - set(comparison.trials)):
        logger.info(f"{others} runs on the disk are not part of the grid and are left alone")
    return content
