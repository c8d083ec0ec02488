"""What is compared on what: the content of a grid file (`distill.comparison.read_grid`)."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

# What decides the budget of a run. It is the same for all runs of a grid.
BUDGET = ("epochs", "batch_size", "image_size", "data", "holdout", "on_bad_image", "seed")


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: As people read it.
        options: Of every run of it.
        per_student: Further options by student.
        tune: Values to choose from by option; empty: nothing is tuned.
        is_reference: Whether it stands beside the compared methods and is never marked as best.
    """

    name: str
    options: Mapping[str, Any]
    per_student: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tune: Mapping[str, list[Any]] = field(default_factory=dict)
    is_reference: bool = False

    def tuning_values(self, fixed: Collection[str] = ()) -> list[dict[str, Any]]:
        """Return every setting that is tried; none when nothing is tuned.

        Args:
            fixed: Options that are given for the student and are not to be tuned for it.
        """
        tune = {name: values for name, values in self.tune.items() if name not in fixed}
        if not tune:
            return []
        return [dict(zip(tune, one, strict=True)) for one in itertools.product(*tune.values())]


@dataclass(frozen=True)
class Teacher:
    """A teacher: what to call it, and its options."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """What is compared.

    Attributes:
        source: What to call the file in messages.
        common: Options of all runs, the budget among them.
        teachers: At least one.
        students: Names.
        seeds: Of the runs, one run each.
        methods: At least one.
        per_student: Options of all methods by student.
        tune_epochs: Length of a tuning run; None: as the others.
        tune_holdout: Share of the training images that tuning holds out; None: as the others.
        linear: Whether the linear classifier is measured.
    """

    source: str
    common: Mapping[str, Any]
    teachers: tuple[Teacher, ...]
    students: tuple[str, ...]
    seeds: tuple[int, ...]
    methods: tuple[Method, ...]
    per_student: Mapping[str, Mapping[str, Any]]
    tune_epochs: int | None = None
    tune_holdout: float | None = None
    linear: bool = True
