"""Reads a comparison's grid: what is compared on what, as YAML (see docs/comparison-grid.md).

What decides the budget of a run (`BUDGET`) stands once, under `common`, so that budgets are equal
by construction; a method or a student that sets one is refused. All other options are those of
`distill train` by name, checked where they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from distill.comparison.grid import BUDGET, Grid, Method, Teacher
from distill.comparison.values import (
    flag_of,
    mapping,
    named_options,
    names_of,
    needed,
    number_of,
    refuse,
    require_distinct,
    require_known,
    seeds_of,
)
from distill.config import TeacherOptions, TrainConfig, flattened, option_names, read_yaml, updated
from distill.errors import DistillError, nearest_match
from distill.parsing import shown

_OF_TEACHERS = tuple(option.name for option in fields(TeacherOptions))
_SHARED_BY_TEACHERS = ("num_teacher_views", "cache_dtype", "teacher_batch_size")
_OF_CELLS = ("output", "resume")
_KEYS = (
    *("data", "common", "teachers", "students", "seeds", "methods", "per_student"),
    *("tune", "tune_epochs", "tune_holdout", "max_tuning_runs", "linear"),
)
_OF_METHODS = ("per_student", "tune", "reference")


def read_grid(path: Path) -> Grid:
    """Read a grid.

    Raises:
        DistillError: A file that cannot be read, an unknown key or option (with the nearest), a
            value of the wrong type, an option in the wrong place, too many tuning runs.
    """
    return parse_grid(read_yaml(path, kind="grid"), source=f"grid {path}")


def parse_grid(content: Mapping[str, Any], *, source: str) -> Grid:
    """Check the content of a grid file.

    Args:
        content: As YAML gives it.
        source: What to call it in messages.

    Raises:
        DistillError: See `read_grid`.
    """
    given = named_options(content, source)
    require_known(given, _KEYS, source)
    students = names_of(given, "students", source)
    grid = Grid(
        source=source,
        common=_common(given, source),
        teachers=tuple(_teachers(given.get("teachers"), source)),
        students=students,
        seeds=seeds_of(given.get("seeds", [0]), source),
        methods=_methods(given, students, source),
        per_student=_per_student(given.get("per_student"), students, source),
        tune_epochs=number_of(given, "tune_epochs", int, source),
        tune_holdout=number_of(given, "tune_holdout", float, source),
        linear=flag_of(given.get("linear", True), "linear", source),
    )
    _require_tuning(grid, number_of(given, "max_tuning_runs", int, source) or 3)
    return grid


def _common(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    where = f"{source}, common"
    options = named_options(given.get("common"), where)
    if "data" in given:
        if "data" in options:
            raise DistillError(f"{source} gives data twice; leave one out")
        options["data"] = given["data"]
    refuse(options, ("student",), where, "list it under students")
    refuse(options, ("seed",), where, "list seeds under seeds")
    own = [name for name in _OF_TEACHERS if name not in _SHARED_BY_TEACHERS]
    refuse(options, own, where, "list it under teachers")
    return _checked(options, where)


def _teachers(value: Any, source: str) -> list[Teacher]:
    if not isinstance(value, list) or not value:
        raise needed("teachers", "a list of names such as [timm:resnet50]", value, source)
    found = []
    for entry in value:
        options = {"teacher": entry} if isinstance(entry, str) else named_options(entry, source)
        label = options.pop("name", options.get("teacher"))
        if not isinstance(options.get("teacher"), str) or not isinstance(label, str):
            raise DistillError(
                f"{source} has the teacher {shown(entry)}; write a name, or a mapping with teacher "
                "and, if need be, name, teacher_weights, teacher_image_size"
            )
        where = f"{source}, teacher {shown(label)}"
        require_known(options, _OF_TEACHERS, where)
        found.append(Teacher(label, _checked(options, where)))
    require_distinct([teacher.name for teacher in found], "teachers", source)
    return found


def _methods(
    given: Mapping[str, Any], students: tuple[str, ...], source: str
) -> tuple[Method, ...]:
    value = given.get("methods")
    if not isinstance(value, Mapping) or not value:
        what = "a mapping of names to options such as {one queue: {}}"
        raise needed("methods", what, value, source)
    tune = _tuned(given.get("tune"), f"{source}, tune")
    return tuple(
        _method(str(name), options, tune, students, f"{source}, method {shown(str(name))}")
        for name, options in value.items()
    )


def _method(
    name: str, value: Any, tune: dict[str, list[Any]], students: tuple[str, ...], where: str
) -> Method:
    options = named_options(value, where)
    own = {key: options.pop(key) for key in _OF_METHODS if key in options}
    _refuse_misplaced(options, where)
    mine = _tuned(own["tune"], f"{where}, tune") if "tune" in own else tune
    # What a method fixes is not tuned for it.
    mine = {option: values for option, values in mine.items() if option not in options}
    return Method(
        name=name,
        options=_checked(options, where, further=_OF_METHODS),
        per_student=_per_student(own.get("per_student"), students, where),
        tune=mine,
        is_reference=flag_of(own.get("reference", False), "reference", where),
    )


def _per_student(value: Any, students: tuple[str, ...], source: str) -> dict[str, dict[str, Any]]:
    where = f"{source}, per_student"
    found = {}
    for student, given in mapping(value, where).items():
        if student not in students:
            nearest = nearest_match(str(student), students)
            hint = f"did you mean {nearest!r}? " if nearest else ""
            raise DistillError(
                f"{where} names {shown(student)}: {hint}students are {', '.join(students)}"
            )
        options = named_options(given, where)
        _refuse_misplaced(options, where)
        found[student] = _checked(options, f"{where} of {shown(student)}")
    return found


def _tuned(value: Any, where: str) -> dict[str, list[Any]]:
    tune = named_options(value, where)
    _refuse_misplaced(tune, where)
    for option, values in tune.items():
        if not isinstance(values, list) or not values:
            raise DistillError(
                f"{where} gives {option} the value {shown(values)}; give a list of values to "
                "choose from"
            )
        read = [_value(option, one, where) for one in values]
        if len(set(map(repr, read))) < len(read):
            raise DistillError(f"{where} lists a value of {option} twice")
    return tune


def _require_tuning(grid: Grid, most: int) -> None:
    """Refuse more tuning runs than allowed, and tuning that has nothing to choose by."""
    for method in grid.methods:
        number = len(method.tuning_values())
        if number > most:
            raise DistillError(
                f"{grid.source}: {method.name!r} would be tuned by {number} runs for each student "
                f"and teacher, {most} are allowed; list fewer values or raise max_tuning_runs"
            )
    if not any(method.tune for method in grid.methods):
        return
    share = grid.common.get("holdout") if grid.tune_holdout is None else grid.tune_holdout
    if share == 0:
        raise DistillError(
            f"{grid.source} tunes on held-out training images and holds none out; set tune_holdout"
        )


def _refuse_misplaced(options: Mapping[str, Any], where: str) -> None:
    refuse(options, ("seed",), where, "list seeds under seeds, so that they are the same for all")
    budget = "it decides the budget; set it under common, so that it is the same for all"
    refuse(options, BUDGET, where, budget)
    of_teachers = [name for name in _OF_TEACHERS if name not in _SHARED_BY_TEACHERS]
    refuse(options, of_teachers, where, "list it under teachers")
    refuse(options, ("student",), where, "list it under students")


def _value(option: str, value: Any, where: str) -> Any:
    """Return an option's value as it is taken: 1e-3, text in YAML, is 0.001."""
    _checked({option: value}, where)
    return flattened(updated(TrainConfig(), {option: value}, source=where))[option]


def _checked(
    options: dict[str, Any], where: str, *, further: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Refuse options that no run can have; return them as they are."""
    refuse(options, _OF_CELLS, where, "every run has a directory of its own; leave it out")
    known = [*option_names(TrainConfig()), *further]
    require_known(options, known, where)
    updated(TrainConfig(), options, source=where)
    return options
