"""The trials of a comparison: their options, the values that tuning chooses, their status on disk.

A trial is one run of a method, a student, a teacher and a seed, or a tuning run with the first
seed. Options override each other in this order: the method's recipe, `common`, `per_student`, the
method, its own `per_student`, the tuned values.

    OUTPUT/grid.yaml            the grid
    OUTPUT/runs/NAME/           the run directory, as of `distill train`
    OUTPUT/trials/NAME.json     its status: state, options, metrics, curve
    OUTPUT/comparison.json      all results in one file; the tables are comparison.md and .html

A trial that was killed stays `started` and resumes from its newest checkpoint. The tables and
--resume need only the status file of a finished trial.
"""

from __future__ import annotations

import fnmatch
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from distill.comparison.grid import BUDGET, Grid, Method
from distill.config import flattened
from distill.errors import DistillError
from distill.files import atomic_write
from distill.parsing import as_dataclass, parse_json
from distill.training.configuration import configure, identity

# Options that a resumed run may change, but a trial may not.
PLACES = ("data", "teacher_weights", "student_weights")
_MAX_NAME = 200  # characters; file systems allow 255 bytes


@dataclass(frozen=True)
class Trial:
    """One run."""

    name: str  # of its directory
    method: Method
    student: str
    teacher: str
    seed: int
    options: Mapping[str, Any] = field(repr=False)  # of `distill train`, without tuned values
    tuning: Mapping[str, Any] | None = None  # the values that a tuning run tries
    tuned_by: tuple[str, ...] = ()  # names of its tuning runs

    @property
    def place(self) -> tuple[str, str, str]:
        """Method, student and teacher, the same for all seeds."""
        return self.method.name, self.student, self.teacher

    def identity(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return every option that defines the trial; an existing trial must have the same.

        Args:
            chosen: The tuned values.
        """
        config = configure({**self.options, **chosen})
        flat = flattened(config)
        places = {name: flat[name] for name in (*PLACES, "on_bad_image")}
        places["data"] = places["data"] or os.environ.get("DISTILL_DATA")  # as training takes it
        return {**identity(config), **places}

    def budget(self) -> dict[str, Any]:
        """Return the options in `BUDGET`; None follows the data."""
        config = flattened(configure(self.options))
        return {name: config[name] for name in BUDGET}


def make_trials(grid: Grid) -> dict[str, Trial]:
    """Return all trials by name, in the order of execution: tuning, then seed by seed.

    Raises:
        DistillError: Two trials would share a name.
    """
    tuning, compared = [], []
    for teacher, teacher_options in grid.teachers.items():
        for student in grid.students:
            for method in grid.methods:
                options = {
                    **grid.common,
                    **grid.per_student.get(student, {}),
                    **method.options,
                    **method.per_student.get(student, {}),
                    **teacher_options,
                    "student": student,
                }
                mine = _tuning_trials(grid, method, student, teacher, options)
                tuning += mine
                by = tuple(trial.name for trial in mine)
                for seed in grid.seeds:
                    name = _slug(method.name, student, teacher, f"seed{seed}")
                    own = {**options, "seed": seed}
                    compared.append(Trial(name, method, student, teacher, seed, own, tuned_by=by))
    compared.sort(key=lambda trial: grid.seeds.index(trial.seed))
    trials: dict[str, Trial] = {}
    for trial in (*tuning, *compared):
        # File systems may ignore case.
        other = trials.setdefault(trial.name.lower(), trial)
        if other is not trial:
            raise DistillError(
                f"{grid.source}: {other.place} and {trial.place} would share the run directory "
                f"{trial.name}; give one another name"
            )
    return {trial.name: trial for trial in trials.values()}


def _tuning_trials(
    grid: Grid, method: Method, student: str, teacher: str, options: Mapping[str, Any]
) -> list[Trial]:
    lengths = {"epochs": grid.tune_epochs, "holdout": grid.tune_holdout, "seed": grid.seeds[0]}
    lengths = {name: value for name, value in lengths.items() if value is not None}
    fixed = {*grid.per_student.get(student, {}), *method.per_student.get(student, {})}
    trials = []
    for values in method.tuning_values(fixed):
        words = "-".join(f"{name}-{value}" for name, value in values.items())
        name = _slug(method.name, student, teacher, f"tune-{words}")
        own = {**options, **values, **lengths}
        trials.append(Trial(name, method, student, teacher, grid.seeds[0], own, tuning=values))
    return trials


def _slug(*parts: str) -> str:
    """Return a safe file name, without separators and leading dots."""
    slugs = (re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.") for part in parts)
    return "--".join(slug or "-" for slug in slugs)[:_MAX_NAME]


def require_equal_budgets(trials: Iterable[Trial], source: str) -> None:
    """Raise `DistillError` for invalid options of a trial, and for unequal budgets."""
    first: tuple[Trial, dict[str, Any]] | None = None
    for trial in trials:
        try:
            budget = trial.budget()
        except DistillError as error:
            raise DistillError(f"{source}, {trial.name}: {error}") from error
        if trial.tuning is not None:
            continue
        first = first or (trial, budget)
        for name, expected in first[1].items():
            if budget[name] != expected:
                raise DistillError(
                    f"{source}: {name} is {expected} for {first[0].method.name!r} and "
                    f"{budget[name]} for {trial.method.name!r} by its recipe; set it under common, "
                    "so that it is the same for all"
                )


def matching(trials: Mapping[str, Trial], pattern: str | None) -> list[Trial]:
    """Return the trials whose names contain a shell pattern, and the tuning runs they need.

    Raises:
        DistillError: The pattern matches none.
    """
    if pattern is None:
        return list(trials.values())
    matched = {name for name in trials if fnmatch.fnmatchcase(name, f"*{pattern}*")}
    if not matched:
        raise DistillError(
            f"--only {pattern} matches none of {len(trials)} runs; --dry-run prints their names"
        )
    needed = matched.union(*(trials[name].tuned_by for name in matched))
    return [trial for name, trial in trials.items() if name in needed]


@dataclass(frozen=True)
class TrialStatus:
    """The state and the results of a trial."""

    state: Literal["started", "done", "failed"]
    options: dict[str, Any]  # `Trial.identity`
    metrics: dict[str, float] = field(default_factory=dict)  # as in metrics.json, when done
    # Epoch and nearest-neighbor accuracy of every check on held-out training images.
    holdout_curve: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0  # without the time between two starts
    error: str | None = None  # the message, when failed

    @property
    def holdout_nn_accuracy(self) -> float | None:
        """The last accuracy on held-out training images; None without a check."""
        return self.holdout_curve[-1][1] if self.holdout_curve else None


def parse_status(content: Any) -> TrialStatus:
    """Return a status from JSON, also of older versions; `ValueError` if it is not one."""
    if isinstance(content, dict) and isinstance(content.get("asked"), dict):
        content = dict(content)
        options = {**content.pop("asked")}
        if options.get("teacher_view") == "centre":
            options["teacher_view"] = "center"
        content["options"] = options
    return as_dataclass(TrialStatus, content)


def write_status(file: Path, status: TrialStatus) -> None:
    """Write the status of a trial atomically."""
    atomic_write(file, (json.dumps(asdict(status), indent=1) + "\n").encode())


class Comparison:
    """A grid with the status of its trials.

    Args:
        grid: What is compared.
        path: The directory; only methods that say so write to it.
        known: Statuses from a results file; status files in the directory override them.

    Attributes:
        trials: By name, in the order of execution.
        statuses: Of the trials that have started, by name.
    """

    def __init__(
        self, grid: Grid, path: Path, known: Mapping[str, TrialStatus] | None = None
    ) -> None:
        self.grid, self.path = grid, path
        self.trials = make_trials(grid)
        self._known = {name: one for name, one in (known or {}).items() if name in self.trials}
        self.statuses: dict[str, TrialStatus] = {}
        self.load()

    def load(self) -> None:
        """Read all status files; `DistillError` if one is damaged."""
        self.statuses = dict(self._known)
        for name in self.trials:
            self.load_status(name)

    def load_status(self, name: str) -> None:
        """Read the status file of one trial, if it exists."""
        file = self.status_file(name)
        if not file.exists():
            return
        try:
            self.statuses[name] = parse_status(parse_json(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise DistillError(
                f"{file} is damaged ({error}); remove it to repeat the run"
            ) from error

    @property
    def trials_folder(self) -> Path:
        """Folder of the status files; older comparisons call it `cells`."""
        old = self.path / "cells"
        return old if old.is_dir() else self.path / "trials"

    def status_file(self, name: str) -> Path:
        """Return the path of a trial's status file."""
        return self.trials_folder / f"{name}.json"

    def run(self, name: str) -> Path:
        """Return the run directory of a trial."""
        return self.path / "runs" / name

    def state(self, name: str) -> str:
        """Return `open`, `started`, `done` or `failed`."""
        return self.statuses[name].state if name in self.statuses else "open"

    def is_open(self, name: str) -> bool:
        """Return whether a trial is not finished."""
        return self.state(name) in ("open", "started")

    def num_open(self, trials: Sequence[Trial]) -> int:
        """Return how many trials are not finished."""
        return sum(self.is_open(trial.name) for trial in trials)

    def tuned_values(self, trial: Trial) -> Mapping[str, Any] | None:
        """Return the values of the tuning run with the highest final accuracy, first of equals.

        The accuracy is on held-out training images, never on validation images.

        Returns:
            Empty if nothing is tuned; None while tuning runs are open or if all of them failed.
        """
        if not trial.tuned_by:
            return {}
        if any(map(self.is_open, trial.tuned_by)):
            return None
        best = best_score([self.statuses[name].holdout_nn_accuracy for name in trial.tuned_by])
        return None if best is None else self.trials[trial.tuned_by[best]].tuning

    def set_status(self, name: str, status: TrialStatus) -> None:
        """Set and write the status of a trial."""
        write_status(self.status_file(name), status)
        self.statuses[name] = status

    def adopt(self) -> None:
        """Write the statuses from the results file that the directory lacks."""
        for name, status in self._known.items():
            if not self.status_file(name).exists():
                self.set_status(name, status)

    def forget(self, name: str, *, with_run: bool) -> None:
        """Remove the status of a trial and, `with_run`, its run directory."""
        if with_run:
            shutil.rmtree(self.run(name), ignore_errors=True)
        self.status_file(name).unlink(missing_ok=True)
        self.statuses.pop(name, None)

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the comparison."""
        atomic_write(self.path / name, text.encode())


def best_score(scores: Sequence[float | None]) -> int | None:
    """Return the index of the highest finite score, first of equals; None without one."""
    known = [i for i, score in enumerate(scores) if score is not None and math.isfinite(score)]
    return max(known, key=lambda i: (scores[i], -i), default=None)


def remove_checkpoints(run: Path) -> None:
    """Remove what only resuming needs; weights, metrics, log and configuration stay."""
    for folder in (run / "checkpoints", run / "embeddings"):
        shutil.rmtree(folder, ignore_errors=True)
