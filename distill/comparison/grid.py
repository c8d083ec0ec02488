"""Reads the grid of a comparison: which methods, students, teachers and seeds, as YAML.

docs/comparison-grid.md describes the file. The options that decide the budget of a run (`BUDGET`)
can be set only under `common`, so that budgets are equal by construction. Every other option is one
of `distill train`. This module checks the structure of the file; `distill.comparison.trial` merges
and checks the options of each trial.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt

from distill.config import TeacherOptions, as_options, read_yaml
from distill.errors import DistillError, nearest_match
from distill.parsing import shown

# The options that decide the budget of a run; equal for all runs of a grid.
BUDGET = ("epochs", "batch_size", "image_size", "data", "holdout", "on_bad_image")
_OF_TEACHERS = ("teacher", "teacher_weights", "teacher_image_size", "teacher_cache")
_ELSEWHERE = {
    "seed": "list seeds under seeds, so that they are the same for all",
    "student": "list it under students",
    **dict.fromkeys(_OF_TEACHERS, "list it under teachers"),
    **dict.fromkeys(("output", "resume"), "every run has its own directory; leave it out"),
}
_UNDER_COMMON = "it decides the budget; set it under common, so that it is the same for all"


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    name: str
    options: Mapping[str, Any]  # of all of its runs
    per_student: Mapping[str, Mapping[str, Any]]  # further options by student
    tune: Mapping[str, list[Any]]  # values to try by option; empty: nothing is tuned
    is_reference: bool = False  # shown for reference, never marked as best

    def tuning_values(self, fixed: Collection[str]) -> list[dict[str, Any]]:
        """Return every combination of values to try, without options `fixed` for the student."""
        tune = {name: values for name, values in self.tune.items() if name not in fixed}
        if not tune:
            return []
        return [dict(zip(tune, one, strict=True)) for one in itertools.product(*tune.values())]


@dataclass(frozen=True, kw_only=True)
class GridSettings:
    """The plain values of a grid."""

    students: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    tune_epochs: Annotated[int, Ge(1)] | None = None  # None: as the other runs
    tune_holdout: Annotated[float, Gt(0)] | None = None  # fraction of the training images
    max_tuning_runs: Annotated[int, Ge(1)] = 3  # for one method, student and teacher
    linear: bool = True  # train the linear classifier


@dataclass(frozen=True, kw_only=True)
class Grid(GridSettings):
    """A checked grid."""

    source: str  # names the file in messages
    content: Mapping[str, Any]  # as parsed from YAML
    common: Mapping[str, Any]  # options of all runs, including the budget
    teachers: Mapping[str, Mapping[str, Any]]  # options by name
    methods: tuple[Method, ...]
    per_student: Mapping[str, Mapping[str, Any]]  # options of all methods by student


def read_grid(path: Path) -> Grid:
    """Read a grid; `DistillError` if the file cannot be read, or as `parse_grid`."""
    return parse_grid(read_yaml(path, kind="grid"), source=f"grid {path}")


def parse_grid(content: Mapping[str, Any], *, source: str) -> Grid:
    """Check the structure of a grid.

    Args:
        content: As parsed from YAML.
        source: Names it in messages.

    Raises:
        DistillError: An unknown key (with the nearest), a value of the wrong type, an option in the
            wrong place, too many tuning runs, or tuning without held-out images.
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


def _teachers(value: Any, source: str) -> dict[str, dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise DistillError(
            f"{source} has the teachers {shown(value)}; give a list of names such as "
            "[timm:resnet50]"
        )
    names, all_options = [], []
    for entry in value:
        where = f"{source}, teacher {shown(entry)}"
        options = {"teacher": entry} if isinstance(entry, str) else _options(entry, where)
        name = options.pop("name", options.get("teacher"))
        if not isinstance(options.get("teacher"), str) or not isinstance(name, str):
            raise DistillError(
                f"{source} has the teacher {shown(entry)}; write a name, or a mapping with teacher "
                "and, optionally, name, teacher_weights, teacher_image_size"
            )
        as_options(TeacherOptions, options, source=where)
        names.append(name)
        all_options.append(options)
    _require_distinct(names, f"{source}, teachers")
    return dict(zip(names, all_options, strict=True))


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
        # Options that a method sets are not tuned.
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
    """Refuse more tuning runs than allowed, and tuning without held-out images."""
    for method in grid.methods:
        number = math.prod(map(len, method.tune.values())) if method.tune else 0
        if number > grid.max_tuning_runs:
            raise DistillError(
                f"{grid.source}: {method.name!r} needs {number} tuning runs for each student and "
                f"teacher, {grid.max_tuning_runs} are allowed; list fewer values or raise "
                "max_tuning_runs"
            )
    share = grid.common.get("holdout") if grid.tune_holdout is None else grid.tune_holdout
    if share == 0 and any(method.tune for method in grid.methods):
        raise DistillError(
            f"{grid.source} tunes on held-out training images but holds none out; set tune_holdout"
        )


def _options(value: Any, where: str) -> dict[str, Any]:
    """Return options by name, with underscores for hyphens; none for an empty value."""
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
