"""The trials of a comparison: their options, what tuning chooses for them, their record on disk.

A trial is one run: a method, a student, a teacher and a seed; or a tuning run, whose seed is the
first one. Options are laid over each other in this order: the method's recipe, `common`,
`per_student`, the method, its own `per_student`, what tuning chose.

    OUTPUT/grid.yaml            the grid
    OUTPUT/runs/NAME/           the run, a directory as `distill train` leaves it
    OUTPUT/trials/NAME.json     what became of it: state, options, numbers, curve
    OUTPUT/comparison.json      all of that in one file, with the tables; comparison.md and .html

A trial that was killed is `started` there and has its checkpoints: it goes on from the newest. Of a
finished one, tables, page and --resume need the record alone.
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

from distill.comparison.grid import BUDGET, Grid, Method, Teacher
from distill.config import flattened
from distill.errors import DistillError
from distill.files import atomic_write
from distill.parsing import as_dataclass, parse_json
from distill.training.configuration import configure, identity

# What a run may change when it is resumed, and a trial of a comparison may not.
PLACES = ("data", "teacher_weights", "student_weights")
_MAX_NAME = 200  # characters; file systems take 255 bytes


@dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
        name: Of its directory.
        method: What is compared.
        student: Its name.
        teacher: Its name.
        seed: Of the run.
        options: Given to `distill train`, without what tuning chooses.
        tuning: What is tried, when it is a tuning run.
        tuned_by: Names of the tuning runs that choose for it.
    """

    name: str
    method: Method
    student: str
    teacher: str
    seed: int
    options: Mapping[str, Any] = field(repr=False)
    tuning: Mapping[str, Any] | None = None
    tuned_by: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[str, str, str]:
        """Method, student and teacher: what the seeds of a mean share."""
        return self.method.name, self.student, self.teacher

    def identity(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return every option that decides what the trial is, with what tuning chose.

        A trial on the disk is kept when this is what it was made with.
        """
        config = configure({**self.options, **chosen})
        flat = flattened(config)
        places = {name: flat[name] for name in (*PLACES, "on_bad_image")}
        places["data"] = places["data"] or os.environ.get("DISTILL_DATA")  # as training takes it
        return {**identity(config), **places}

    def budget(self) -> dict[str, Any]:
        """Return the options that decide what the trial may spend; None follows the data."""
        config = flattened(configure(self.options))
        return {name: config[name] for name in BUDGET}


def make_trials(grid: Grid) -> dict[str, Trial]:
    """Return all trials by name, in the order that they are made: tuning, then seed by seed.

    Raises:
        DistillError: Two trials would share a name.
    """
    tuning, compared = [], []
    for teacher in grid.teachers:
        for student in grid.students:
            for method in grid.methods:
                options = {
                    **grid.common,
                    **grid.per_student.get(student, {}),
                    **method.options,
                    **method.per_student.get(student, {}),
                    **teacher.options,
                    "student": student,
                }
                mine = _tuning_trials(grid, method, student, teacher, options)
                tuning += mine
                for seed in grid.seeds:
                    name = _slug(method.name, student, teacher.name, f"seed{seed}")
                    asked = {**options, "seed": seed}
                    by = tuple(trial.name for trial in mine)
                    compared.append(
                        Trial(name, method, student, teacher.name, seed, asked, tuned_by=by)
                    )
    compared.sort(key=lambda trial: grid.seeds.index(trial.seed))
    trials: dict[str, Trial] = {}
    for trial in (*tuning, *compared):
        # File systems may not tell upper from lower case.
        other = trials.setdefault(trial.name.lower(), trial)
        if other is not trial:
            raise DistillError(
                f"{grid.source}: {other.place} and {trial.place} would share the run directory "
                f"{trial.name}; give one another name"
            )
    return {trial.name: trial for trial in trials.values()}


def _tuning_trials(
    grid: Grid, method: Method, student: str, teacher: Teacher, options: Mapping[str, Any]
) -> list[Trial]:
    lengths = {"epochs": grid.tune_epochs, "holdout": grid.tune_holdout, "seed": grid.seeds[0]}
    lengths = {name: value for name, value in lengths.items() if value is not None}
    fixed = {*grid.per_student.get(student, {}), *method.per_student.get(student, {})}
    trials = []
    for values in method.tuning_values(fixed):
        words = "-".join(f"{name}-{value}" for name, value in values.items())
        name = _slug(method.name, student, teacher.name, f"tune-{words}")
        asked = {**options, **values, **lengths}
        trials.append(
            Trial(name, method, student, teacher.name, grid.seeds[0], asked, tuning=values)
        )
    return trials


def _slug(*parts: str) -> str:
    """Return a file name: no separators, no leading dots, whatever a received grid says."""
    slugs = (re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.") for part in parts)
    return "--".join(slug or "-" for slug in slugs)[:_MAX_NAME]


def require_equal_budgets(trials: Iterable[Trial], source: str) -> None:
    """Refuse options that no run can have, and a budget that a recipe decides for its method alone.

    Raises:
        DistillError: Naming trial or methods.
    """
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
    """Return the trials whose names hold a shell pattern, and the tuning runs that they need.

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
    """What became of a trial.

    Attributes:
        state: `started`, `done` or `failed`.
        options: Every option that decides what the trial is (`Trial.identity`).
        metrics: As in metrics.json, when done.
        holdout_curve: Epoch and nearest-neighbor accuracy of every check on held-out training
            images.
        seconds: Time it took, without the waiting between two starts.
        error: Why it failed, a sentence.
    """

    state: Literal["started", "done", "failed"]
    options: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    holdout_curve: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0
    error: str | None = None

    @property
    def holdout_nn_accuracy(self) -> float | None:
        """The accuracy of the last check on held-out training images; None without one."""
        return self.holdout_curve[-1][1] if self.holdout_curve else None


def parse_status(content: Any) -> TrialStatus:
    """Return a status from JSON; one that was written before trials were called so, too.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(content, dict) and isinstance(content.get("asked"), dict):
        content = dict(content)
        options = {**content.pop("asked")}
        if options.get("teacher_view") == "centre":
            options["teacher_view"] = "center"
        content["options"] = options
    return as_dataclass(TrialStatus, content)


def write_status(file: Path, status: TrialStatus) -> None:
    """Write what became of a trial; the file is whole or as before."""
    atomic_write(file, (json.dumps(asdict(status), indent=1) + "\n").encode())


class Comparison:
    """A grid with its trials and what became of each; on the disk, unless it was read from a file.

    Args:
        grid: What is compared.
        path: Its directory; nothing is written until a method says so.
        known: What is known of trials from elsewhere; what lies in the directory goes before it.

    Attributes:
        trials: By name, in the order that they are made.
        statuses: Of those that have been started, by name.
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
        """Read what lies on the disk.

        Raises:
            DistillError: A file that is damaged.
        """
        self.statuses = dict(self._known)
        for name in self.trials:
            self.load_status(name)

    def load_status(self, name: str) -> None:
        """Read what became of one trial, which another process has written."""
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
        """Folder of the records of the trials, under its name of before where it has that."""
        old = self.path / "cells"
        return old if old.is_dir() else self.path / "trials"

    def status_file(self, name: str) -> Path:
        """Return the record of a trial."""
        return self.trials_folder / f"{name}.json"

    def run(self, name: str) -> Path:
        """Return the run directory of a trial."""
        return self.path / "runs" / name

    def state(self, name: str) -> str:
        """Return `open`, `started`, `done` or `failed`."""
        return self.statuses[name].state if name in self.statuses else "open"

    def is_open(self, name: str) -> bool:
        """Return whether a trial has yet to end."""
        return self.state(name) in ("open", "started")

    def num_open(self, trials: Sequence[Trial]) -> int:
        """Return how many trials have yet to end."""
        return sum(self.is_open(trial.name) for trial in trials)

    def tuned_values(self, trial: Trial) -> Mapping[str, Any] | None:
        """Return the options that the tuning runs of a trial chose, by held-out training images.

        The highest accuracy at the end of a run wins, the first of equals; validation images choose
        nothing. Runs that failed lose.

        Returns:
            No options where nothing is tuned; None while tuning is open, and when all runs failed.
        """
        if not trial.tuned_by:
            return {}
        if any(map(self.is_open, trial.tuned_by)):
            return None
        best = best_score([self.statuses[name].holdout_nn_accuracy for name in trial.tuned_by])
        return None if best is None else self.trials[trial.tuned_by[best]].tuning

    def make(self) -> None:
        """Make the directory."""
        for folder in (self.path / "runs", self.trials_folder):
            folder.mkdir(parents=True, exist_ok=True)

    def set_status(self, name: str, status: TrialStatus) -> None:
        """Keep what became of a trial."""
        write_status(self.status_file(name), status)
        self.statuses[name] = status

    def adopt(self) -> None:
        """Write the records that are known from elsewhere and are not in the directory."""
        for name, status in self._known.items():
            if not self.status_file(name).exists():
                self.set_status(name, status)

    def forget(self, name: str, *, with_run: bool) -> None:
        """Remove the record of a trial, after its run directory if that is to go, too."""
        if with_run:
            shutil.rmtree(self.run(name), ignore_errors=True)
        self.status_file(name).unlink(missing_ok=True)
        self.statuses.pop(name, None)

    def write_text(self, name: str, text: str) -> None:
        """Write the copy of the grid, or a file of the results."""
        atomic_write(self.path / name, text.encode())


def best_score(scores: Sequence[float | None]) -> int | None:
    """Return the position of the highest score, the first of equals; None without any."""
    known = [i for i, score in enumerate(scores) if score is not None and math.isfinite(score)]
    return max(known, key=lambda i: (scores[i], -i), default=None)


def remove_checkpoints(run: Path) -> None:
    """Remove what only a run that goes on needs; weights, numbers, log and configuration stay."""
    for folder in (run / "checkpoints", run / "embeddings"):
        shutil.rmtree(folder, ignore_errors=True)
