"""Reads the grid of a comparison: which methods, students, teachers and seeds, as YAML.

docs/comparison-grid.md describes the file. What decides the budget of a run (`BUDGET`) can be set
under `common` alone, so that budgets are equal by construction; a method or a student that sets one
is refused. Every other option is one of `distill train` by name. Here the shape of the file is
checked; the options of a trial are, once all that lies over each other is known, where the trial is
(`distill.comparison.trial`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt

from distill.config import TeacherOptions, as_options, read_yaml
from distill.errors import DistillError, nearest_match
from distill.parsing import shown

# What decides the budget of a run, beside its seed. It is the same for all runs of a grid.
BUDGET = ("epochs", "batch_size", "image_size", "data", "holdout", "on_bad_image")
_OF_TEACHERS = ("teacher", "teacher_weights", "teacher_image_size", "teacher_cache")
_ELSEWHERE = {
    "seed": "list seeds under seeds, so that they are the same for all",
    "student": "list it under students",
    **dict.fromkeys(_OF_TEACHERS, "list it under teachers"),
    **dict.fromkeys(("output", "resume"), "every run has a directory of its own; leave it out"),
}
_UNDER_COMMON = "it decides the budget; set it under common, so that it is the same for all"


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


@dataclass(frozen=True, kw_only=True)
class GridSettings:
    """The plain values of a grid.

    Attributes:
        students: Names, at least one.
        seeds: Of the runs, one run each.
        tune_epochs: Length of a tuning run; None: as the others.
        tune_holdout: Share of the training images that tuning holds out; None: as the others.
        max_tuning_runs: How many are allowed for one method, student and teacher.
        linear: Whether the linear classifier is measured.
    """

    students: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    tune_epochs: Annotated[int, Ge(1)] | None = None
    tune_holdout: Annotated[float, Gt(0)] | None = None
    max_tuning_runs: Annotated[int, Ge(1)] = 3
    linear: bool = True


@dataclass(frozen=True, kw_only=True)
class Grid(GridSettings):
    """What is compared.

    Attributes:
        source: What to call the file in messages.
        content: The file as YAML gives it.
        common: Options of all runs, the budget among them.
        teachers: At least one.
        methods: At least one.
        per_student: Options of all methods by student.
    """

    source: str
    content: Mapping[str, Any]
    common: Mapping[str, Any]
    teachers: tuple[Teacher, ...]
    methods: tuple[Method, ...]
    per_student: Mapping[str, Mapping[str, Any]]


def read_grid(path: Path) -> Grid:
    """Read a grid.

    Raises:
        DistillError: A file that cannot be read, and what `parse_grid` refuses.
    """
    return parse_grid(read_yaml(path, kind="grid"), source=f"grid {path}")


def parse_grid(content: Mapping[str, Any], *, source: str) -> Grid:
    """Check the shape of a grid.

    Args:
        content: As YAML gives it.
        source: What to call it in messages.

    Raises:
        DistillError: An unknown key (with the nearest), a value of the wrong type, an option in the
            wrong place, too many tuning runs, or tuning without images to choose by.
    """
    given = _options(content, source)
    nested = ("data", "common", "teachers", "methods", "per_student", "tune")
    known = [*nested, *(setting.name for setting in fields(GridSettings))]
    for key in given:
        if key not in known:
            nearest = nearest_match(key, known)
            hint = f"did you mean {nearest!r}?" if nearest else f"known: {', '.join(known)}"
            raise DistillError(f"{source} has an unknown option {shown(key)}: {hint}")
    plain = {key: value for key, value in given.items() if key not in nested}
    settings = as_options(GridSettings, plain, source=source)
    if not settings.students:
        raise DistillError(f"{source} needs students, a list of names such as [resnet18]")
    if not settings.seeds:
        raise DistillError(f"{source} lists no seeds; leave seeds out for one run each")
    _require_distinct(settings.students, f"{source}, students")
    _require_distinct(settings.seeds, f"{source}, seeds")
    grid = Grid(
        **vars(settings),
        source=source,
        content=content,
        common=_common(given, source),
        teachers=_teachers(given.get("teachers"), source),
        methods=_methods(given, settings.students, source),
        per_student=_per_student(given.get("per_student"), settings.students, source),
    )
    _require_tuning(grid)
    return grid


def _common(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    options = _options(given.get("common"), f"{source}, common")
    if "data" in given:
        if "data" in options:
            raise DistillError(f"{source} gives data twice; leave one out")
        options["data"] = given["data"]
    _refuse_misplaced(options, f"{source}, common", _ELSEWHERE)
    return options


def _teachers(value: Any, source: str) -> tuple[Teacher, ...]:
    if not isinstance(value, list) or not value:
        raise DistillError(
            f"{source} has the teachers {shown(value)}; give a list of names such as "
            "[timm:resnet50]"
        )
    teachers = []
    for entry in value:
        where = f"{source}, teacher {shown(entry)}"
        options = {"teacher": entry} if isinstance(entry, str) else _options(entry, where)
        name = options.pop("name", options.get("teacher"))
        if not isinstance(options.get("teacher"), str) or not isinstance(name, str):
            raise DistillError(
                f"{source} has the teacher {shown(entry)}; write a name, or a mapping with teacher "
                "and, if need be, name, teacher_weights, teacher_image_size"
            )
        as_options(TeacherOptions, options, source=where)
        teachers.append(Teacher(name, options))
    _require_distinct([teacher.name for teacher in teachers], f"{source}, teachers")
    return tuple(teachers)


def _methods(
    given: Mapping[str, Any], students: Collection[str], source: str
) -> tuple[Method, ...]:
    value = given.get("methods")
    if not isinstance(value, Mapping) or not value:
        raise DistillError(
            f"{source} has the methods {shown(value)}; give a mapping of names to options such as "
            "{one queue: {}}"
        )
    tune = _tune(given.get("tune"), f"{source}, tune")
    methods = []
    for name, written in value.items():
        where = f"{source}, method {shown(str(name))}"
        options = _options(written, where)
        per_student = _per_student(options.pop("per_student", None), students, where)
        own_tune = _tune(options.pop("tune"), f"{where}, tune") if "tune" in options else tune
        is_reference = options.pop("reference", False)
        if not isinstance(is_reference, bool):
            raise DistillError(f"{where} has reference {shown(is_reference)}; give true or false")
        _refuse_misplaced(options, where)
        # What a method fixes is not tuned for it.
        own_tune = {key: values for key, values in own_tune.items() if key not in options}
        methods.append(Method(str(name), options, per_student, own_tune, is_reference))
    return tuple(methods)


def _per_student(value: Any, students: Collection[str], source: str) -> dict[str, dict[str, Any]]:
    where = f"{source}, per_student"
    by_student = {}
    for student, written in _mapping(value, where).items():
        if student not in students:
            nearest = nearest_match(str(student), students)
            hint = f"did you mean {nearest!r}? " if nearest else ""
            raise DistillError(
                f"{where} names {shown(student)}: {hint}students are {', '.join(students)}"
            )
        by_student[student] = _options(written, where)
        _refuse_misplaced(by_student[student], where)
    return by_student


def _tune(value: Any, where: str) -> dict[str, list[Any]]:
    tune = _options(value, where)
    _refuse_misplaced(tune, where)
    for option, values in tune.items():
        if not isinstance(values, list) or not values:
            raise DistillError(
                f"{where} gives {option} the value {shown(values)}; give a list of values to "
                "choose from"
            )
        _require_distinct(values, f"{where} of {option}")
    return tune


def _require_tuning(grid: Grid) -> None:
    """Refuse more tuning runs than allowed, and tuning that has nothing to choose by."""
    for method in grid.methods:
        number = math.prod(map(len, method.tune.values())) if method.tune else 0
        if number > grid.max_tuning_runs:
            raise DistillError(
                f"{grid.source}: {method.name!r} would be tuned by {number} runs for each student "
                f"and teacher, {grid.max_tuning_runs} are allowed; list fewer values or raise "
                "max_tuning_runs"
            )
    share = grid.common.get("holdout") if grid.tune_holdout is None else grid.tune_holdout
    if share == 0 and any(method.tune for method in grid.methods):
        raise DistillError(
            f"{grid.source} tunes on held-out training images and holds none out; set tune_holdout"
        )


def _options(value: Any, where: str) -> dict[str, Any]:
    """Return options by name; hyphens and underscores are the same, nothing is no option."""
    given = _mapping(value, where)
    options = {str(name).replace("-", "_"): one for name, one in given.items()}
    if len(options) < len(given):
        raise DistillError(f"{where} gives an option twice, with hyphens and with underscores")
    return options


def _mapping(value: Any, where: str) -> Mapping[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DistillError(f"{where} is {shown(value)}; write a mapping, NAME: VALUE")
    return value


def _refuse_misplaced(
    options: Mapping[str, Any],
    where: str,
    places: Mapping[str, str] = {**dict.fromkeys(BUDGET, _UNDER_COMMON), **_ELSEWHERE},
) -> None:
    for name in options:
        if name in places:
            raise DistillError(f"{where} sets {name}: {places[name]}")


def _require_distinct(values: Collection[Any], where: str) -> None:
    texts = [str(value) for value in values]
    for value, text in zip(values, texts, strict=True):
        if texts.count(text) > 1:
            raise DistillError(f"{where} lists {shown(value)} twice")
