"""The runs of a comparison: which there are, in which order, with which options.

A cell is one run: a method, a student, a teacher and a seed, or a tuning run, whose seed is the
first one. Options are laid over each other in this order: the method's recipe, `common`,
`per_student`, the method, its own `per_student`, what tuning chose.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from distill.comparison.grid import BUDGET, Grid, Method, Teacher
from distill.config import METHODS, BaselineOptions, MethodOptions, flattened
from distill.errors import DistillError
from distill.training.configuration import configure

# What may change between sittings: how a run is executed, not what it is.
_FREE = frozenset(
    {
        *("output", "resume", "recipe", "device", "num_workers", "teacher_batch_size"),
        *("teacher_cache", "loss_implementation", "log_every", "queue_sharding"),
        *(
            "max_bad_images",
            "checkpoint_every",
            "keep_every",
            "on_failed_checkpoint",
            "nn_every",
            "measure",
        ),
    }
)
# A method does not have all of these, and what it has not decides nothing.
_OF_METHODS = frozenset(
    option.name
    for group in (MethodOptions, BaselineOptions)
    for option in fields(group)
    if option.name != "method"
)
_MAX_NAME = 200  # characters; file systems take 255 bytes


@dataclass(frozen=True)
class Cell:
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
        return (self.method.name, self.student, self.teacher)


def cells_of(grid: Grid) -> list[Cell]:
    """Return all runs in the order that they are made: tuning, then seed by seed.

    Raises:
        DistillError: Two runs would share a name, or recipes give methods unequal budgets.
    """
    places = [(m, s, t) for t in grid.teachers for s in grid.students for m in grid.methods]
    tuning = {_key(place): _tuning_cells(grid, *place) for place in places}
    cells = [cell for found in tuning.values() for cell in found]
    for seed in grid.seeds:
        for method, student, teacher in places:
            chosen_by = tuple(cell.name for cell in tuning[_key((method, student, teacher))])
            options = {**_options(grid, method, student, teacher), "seed": seed}
            name = _name(method.name, student, teacher.name, f"seed{seed}")
            cells.append(Cell(name, method, student, teacher.name, seed, options, None, chosen_by))
    _require_distinct_names(cells, grid.source)
    _require_equal_budgets(cells, grid.source)
    return cells


def selected(cells: Sequence[Cell], pattern: str | None) -> list[Cell]:
    """Return the cells whose names hold a shell pattern, and the tuning runs that they need.

    Raises:
        DistillError: The pattern matches none.
    """
    if pattern is None:
        return list(cells)
    matched = {cell.name for cell in cells if fnmatch.fnmatchcase(cell.name, f"*{pattern}*")}
    if not matched:
        raise DistillError(
            f"--only {pattern} matches none of {len(cells)} runs; --dry-run prints their names"
        )
    needed = {name for cell in cells if cell.name in matched for name in cell.tuned_by}
    return [cell for cell in cells if cell.name in matched | needed]


def asked_options(cell: Cell, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option that decides what a cell is, with what tuning chose.

    A cell on the disk is kept when this is what it was made with.
    """
    config = flattened(configure({**cell.options, **chosen}))
    config["data"] = config["data"] or os.environ.get("DISTILL_DATA")  # as training takes it
    of_others = _OF_METHODS - METHODS.get(config["method"]).options
    return {name: value for name, value in config.items() if name not in _FREE | of_others}


def budget_of(cell: Cell) -> dict[str, Any]:
    """Return the options that decide what a run may spend, but the seed; None follows the data."""
    config = flattened(configure(cell.options))
    return {name: config[name] for name in BUDGET if name != "seed"}


def _key(place: tuple[Method, str, Teacher]) -> tuple[str, str, str]:
    method, student, teacher = place
    return (method.name, student, teacher.name)


def _options(grid: Grid, method: Method, student: str, teacher: Teacher) -> dict[str, Any]:
    return {
        **grid.common,
        **grid.per_student.get(student, {}),
        **method.options,
        **method.per_student.get(student, {}),
        **teacher.options,
        "student": student,
    }


def _tuning_cells(grid: Grid, method: Method, student: str, teacher: Teacher) -> list[Cell]:
    fixed = {*grid.per_student.get(student, {}), *method.per_student.get(student, {})}
    found = []
    for values in method.tuning_values(fixed):
        options = {**_options(grid, method, student, teacher), **values, "seed": grid.seeds[0]}
        if grid.tune_epochs is not None:
            options["epochs"] = grid.tune_epochs
        if grid.tune_holdout is not None:
            options["holdout"] = grid.tune_holdout
        words = "-".join(f"{name}-{value}" for name, value in values.items())
        name = _name(method.name, student, teacher.name, f"tune-{words}")
        found.append(
            Cell(name, method, student, teacher.name, grid.seeds[0], options, tuning=values)
        )
    return found


def _name(*parts: str) -> str:
    slugs = (re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.") for part in parts)
    return "--".join(slug or "-" for slug in slugs)[:_MAX_NAME]


def _require_distinct_names(cells: Sequence[Cell], source: str) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        # File systems may not tell upper from lower case.
        other = seen.setdefault(cell.name.lower(), cell)
        if other is not cell:
            raise DistillError(
                f"{source}: {other.place} and {cell.place} would share the run directory "
                f"{cell.name}; give one another name"
            )


def _require_equal_budgets(cells: Sequence[Cell], source: str) -> None:
    """Refuse what a recipe of a method decides on its own, `common` being silent."""
    compared = [cell for cell in cells if cell.tuning is None]
    first, expected = compared[0], budget_of(compared[0])
    for cell in compared[1:]:
        for name, value in budget_of(cell).items():
            if value != expected[name]:
                raise DistillError(
                    f"{source}: {name} is {expected[name]} for {first.method.name!r} and {value} "
                    f"for {cell.method.name!r} by its recipe; set it under common, so that it is "
                    "the same for all"
                )
