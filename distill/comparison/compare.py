"""Compares methods on a grid of students, teachers and seeds, with equal budgets.

Every trial is a run of `distill train`, evaluated by the metrics of training and the linear
classifier. All trials share the cached embeddings of the teacher, which embeds each image once.
Their status is kept in small files, written atomically (`distill.comparison.trial`), so that the
same command with --resume continues after any interruption.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

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
from distill.files import lock_folder
from distill.reports.comparison_tables import ComparisonContent, comparison_markdown
from distill.reports.page import grid_page

logger = logging.getLogger(__name__)

GRID, RESULTS = "grid.yaml", "comparison.json"


@dataclass(frozen=True)
class CompareOptions:
    """Options of `distill compare`."""

    output: Path | None = None
    """Directory of the comparison; None: under runs/, named after the grid's file."""
    resume: bool = False
    """Continue the comparison in the output directory, if there is one."""
    stop_after: Annotated[float, Gt(0)] | None = None
    """Minutes after which to stop, with a checkpoint of the run in progress."""
    jobs: Annotated[int, Ge(1)] = 1
    """Runs at a time; each gets an equal share of the cores and, if there are several, a GPU."""
    only: str | None = None
    """Train only runs whose name contains this shell pattern, and the tuning they need."""
    retry_failed: bool = False
    """Train failed runs again; needs --resume."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of finished runs, which take most of the disk space."""
    dry_run: bool = False
    """Check the grid, print the runs and the estimated time, and stop."""
    table: bool = False
    """Write the tables and the page from the finished runs, without training."""


@dataclass(frozen=True)
class ComparisonResult:
    """The state of a comparison."""

    # With comparison.json, comparison.md and comparison.html; None when nothing was written.
    output: Path | None
    content: ComparisonContent  # of the tables and the page
    num_runs: int  # in the grid, or selected by `--only`
    num_open: int  # of them not finished
    num_failed: int
    stopped_by: str | None  # a signal's name or `--stop-after`
    seconds_left: float | None  # estimate for the open runs; None if unknown
    num_bytes: int  # size of the directory


def compare(source: Path, options: CompareOptions) -> ComparisonResult:
    """Run a comparison, resume one, or write the tables of its finished runs.

    Args:
        source: The YAML file of the grid, the directory of a comparison, or its comparison.json
            under any name.
        options: Options of the command.

    Raises:
        DistillError: A grid or run that is not valid; existing runs with different options; a
            directory that has other content or is in use.
    """
    check_options(options)
    if options.table and options.dry_run:
        raise DistillError("--table does not go with --dry-run; leave one out")
    comparison = open_comparison(source, options)
    trials = matching(comparison.trials, options.only)
    if options.table:
        if not _is_results_file(source) and not source.is_dir():  # these include their grid
            require_same_options(comparison)
        is_written = not _is_results_file(source) or options.output is not None
        return _result(comparison, trials, writes=is_written)
    require_equal_budgets(comparison.trials.values(), comparison.grid.source)
    require_runnable(comparison, trials)
    if options.dry_run:
        failed, unmeasured = _trials_to_reopen(comparison, trials, options)
        return _result(comparison, trials, writes=False, reopened=[*failed, *unmeasured])
    for folder in (comparison.path / "runs", comparison.trials_folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(comparison.path)
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
    """Read a grid and the status of its trials; writes nothing.

    Raises:
        DistillError: A source that is not a comparison, or an output directory that is not usable.
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
    """Raise `DistillError` for other content, or an existing comparison without --resume."""
    if output.exists() and not output.is_dir():
        raise DistillError(f"--output {output} is a file; name a directory")
    holds_comparison = (output / GRID).exists()
    if options.table and not holds_comparison:
        raise DistillError(f"{output} holds no comparison; --table needs one")
    if holds_comparison and not (options.resume or options.table or options.dry_run):
        raise DistillError(
            f"{output} holds a comparison already; continue it with --resume or choose another "
            "--output"
        )
    leftovers = {"runs", "trials", "cells", ".lock"}  # of a comparison that was killed early
    entries = {entry.name for entry in output.iterdir()} if output.is_dir() else set()
    if not holds_comparison and entries - leftovers:
        raise DistillError(
            f"{output} is not empty and holds no comparison; choose another --output"
        )


def _trials_to_reopen(
    comparison: Comparison, trials: Sequence[Trial], options: CompareOptions
) -> tuple[list[Trial], list[Trial]]:
    """Return the failed trials to retry, and the finished trials without a linear accuracy.

    A tuning trial that a finished trial depends on is not retried.

    Raises:
        DistillError: Existing trials have different options.
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
    """Reopen trials; a failed one resumes from its checkpoint unless its options changed."""
    for trial in failed:
        now = trial.identity(comparison.tuned_values(trial) or {})
        is_changed = _difference(comparison.statuses[trial.name].options, now) is not None
        comparison.forget(trial.name, with_run=is_changed)
    for trial in unmeasured:
        status = comparison.statuses[trial.name]
        comparison.set_status(trial.name, replace(status, state="started"))


def require_same_options(comparison: Comparison, *, retried: Collection[str] = ()) -> None:
    """Refuse existing trials whose options differ from those of the grid.

    Args:
        comparison: The grid and its existing trials.
        retried: Names of failed trials to retry, which may differ.

    Raises:
        DistillError: Naming the trial, the option and both values; or no existing trial is in the
            grid.
    """
    existing = sorted(file.stem for file in comparison.trials_folder.glob("*.json"))
    if existing and comparison.trials.keys().isdisjoint(existing):
        raise DistillError(
            f"{comparison.path} holds another comparison, none of whose {len(existing)} runs (such "
            f"as {existing[0]}) is in the grid; choose another --output"
        )
    for name, status in comparison.statuses.items():
        if name in retried:
            continue
        trial, file = comparison.trials[name], comparison.status_file(name)
        remedy = f"choose another --output, or remove that folder and {file} to repeat the run"
        chosen = comparison.tuned_values(trial)
        now = trial.identity(chosen or {})
        if chosen is None:  # tuned options are not known yet
            now = {key: value for key, value in now.items() if key not in trial.method.tune}
        if (different := _difference(status.options, now)) is not None:
            option, was, wanted = different
            moved = ", link the old path to the new one if it has only moved"
            raise DistillError(
                f"{comparison.run(name)} was made with {option} {was} and the grid now has "
                f"{wanted}; change the grid back{moved if option in PLACES else ''}, {remedy}"
                f"{', or retry it with --retry-failed' if status.state == 'failed' else ''}"
            )
        untried = [one for one in trial.tuned_by if comparison.is_open(one)]
        if untried and status.state != "failed":
            raise DistillError(
                f"{comparison.run(name)} was made with tuned values, and the grid now has one more "
                f"value to try, {untried[0]}; remove it from tune, {remedy}"
            )


def _difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first option that differs, among those that both have."""
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
    """Write the results file, the tables and the page."""
    content = read_results(comparison)
    comparison.path.mkdir(parents=True, exist_ok=True)
    comparison.write_text(RESULTS, results_json(comparison, content))
    comparison.write_text("comparison.md", comparison_markdown(content))
    comparison.write_text("comparison.html", grid_page(content))
    names = {file.stem for file in comparison.trials_folder.glob("*.json")}
    if others := len(names - set(comparison.trials)):
        logger.info(f"{others} existing runs are not in the grid and are ignored")
    return content
