"""What a comparison has found so far: its tables, its curves, and every number of every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import yaml

from distill.comparison.cells import Cell, budget_of
from distill.comparison.curves import held_out_curves
from distill.comparison.grid import BUDGET, Grid, Method
from distill.comparison.state import DONE, FAILED, STARTED, ComparisonDirectory, Outcome
from distill.comparison.tuning import best_score
from distill.reports.grid_content import (
    MEASURES,
    METHOD,
    REFERENCE,
    CellLine,
    GridContent,
    GridRow,
    GridTable,
    TuningChoice,
)
from distill.reports.spread import Spread, spread_of
from distill.terminal import described_seconds

Outcomes = Mapping[str, Outcome | None]


def read_results(grid: Grid, cells: Sequence[Cell], directory: ComparisonDirectory) -> GridContent:
    """Return what there is to say about a comparison; runs may be missing.

    Raises:
        DistillError: A file that is damaged.
    """
    outcomes = {cell.name: directory.outcome(cell.name) for cell in cells}
    places = [(student, teacher.name) for teacher in grid.teachers for student in grid.students]
    failed = [
        (name, found.error or "")
        for name, found in outcomes.items()
        if found is not None and found.state == FAILED
    ]
    return GridContent(
        name=directory.path.resolve().name,
        budget=_budget(grid, cells, outcomes),
        tables=[_table(grid, cells, outcomes, *place) for place in places],
        methods={method.name: _words(method) for method in grid.methods},
        tuning=_tuning(cells, outcomes),
        tuning_facts=_tuning_facts(grid, cells),
        failed=failed,
        curves=[held_out_curves(cells, outcomes, *place) for place in places],
        cells=[_line(cell, outcomes[cell.name]) for cell in cells],
        notes=_notes(grid),
    )


def _table(
    grid: Grid, cells: Sequence[Cell], outcomes: Outcomes, student: str, teacher: str
) -> GridTable:
    mine = [
        cell
        for cell in cells
        if (cell.student, cell.teacher) == (student, teacher) and cell.tuning is None
    ]
    measures = [name for name in MEASURES if grid.linear or name != "linear_accuracy"]
    rows = [
        _method_row(method, [c for c in mine if c.method is method], outcomes, measures)
        for method in sorted(grid.methods, key=lambda method: method.is_reference)
    ]
    rows += [
        GridRow(words, REFERENCE, _reference(prefix, mine, outcomes, measures))
        for prefix, words in (("untrained_", "untrained student"), ("teacher_", "teacher"))
    ]
    return GridTable(student, teacher, rows)


def _method_row(
    method: Method, cells: Sequence[Cell], outcomes: Outcomes, measures: Sequence[str]
) -> GridRow:
    found = [outcomes[cell.name] for cell in cells]
    done = [one for one in found if one is not None and one.state == DONE]
    seconds = [
        float(one.metrics["train_seconds"]) for one in done if "train_seconds" in one.metrics
    ]
    return GridRow(
        name=method.name,
        kind=REFERENCE if method.is_reference else METHOD,
        values={
            name: spread_of([float(one.metrics[name]) for one in done if name in one.metrics])
            for name in measures
        },
        num_done=len(done),
        num_failed=sum(one is not None and one.state == FAILED for one in found),
        num_asked=len(cells),
        train_seconds=mean(seconds) if seconds else None,
    )


def _reference(
    prefix: str, cells: Sequence[Cell], outcomes: Outcomes, measures: Sequence[str]
) -> dict[str, Spread | None]:
    """Return what runs wrote down before training, a value for each seed; one for the teacher.

    One run of each seed has measured it.
    """
    by_seed: dict[int, Mapping[str, Any]] = {}
    for cell in sorted(cells, key=_is_unusual):
        outcome = outcomes[cell.name]
        if outcome is not None and f"{prefix}nn_accuracy" in outcome.metrics:
            by_seed.setdefault(cell.seed, outcome.metrics)
    found = [by_seed[seed] for seed in sorted(by_seed)]
    found = found[:1] if prefix == "teacher_" else found
    return {
        name: spread_of([float(one[prefix + name]) for one in found if prefix + name in one])
        for name in measures
    }


def _is_unusual(cell: Cell) -> tuple[bool, bool, bool]:
    """Rank a cell by what its numbers before training are of, the usual first."""
    options = cell.options
    return (
        options.get("teacher_view") == "student",  # measured at the student's size
        options.get("student_weights") is not None,
        options.get("student_init") is not None,
    )


def _budget(grid: Grid, cells: Sequence[Cell], outcomes: Outcomes) -> dict[str, str]:
    compared = next(cell for cell in cells if cell.tuning is None)
    words = {
        name: "by data" if value is None else str(value)
        for name, value in budget_of(compared).items()
        if name != "on_bad_image"
    }
    made = [one for one in outcomes.values() if one is not None and one.state != STARTED]
    return {
        **{name.replace("_", " "): value for name, value in words.items()},
        "seeds": ", ".join(map(str, grid.seeds)),
        "runs made": f"{len(made)} of {len(cells)}",
        "time": described_seconds(sum(one.seconds for one in made)),
    }


def _words(method: Method) -> str:
    parts = [_setting(method.options)] if method.options else ["the defaults"]
    parts += [f"{name}: {_setting(given)}" for name, given in method.per_student.items()]
    parts += [f"tuned: {_setting(method.tune)}"] if method.tune else []
    return "; ".join(parts)


def _setting(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in options.items())


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).split("\n")[0]


def _tuning(cells: Sequence[Cell], outcomes: Outcomes) -> list[TuningChoice]:
    by_place: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        if cell.tuning is not None:
            by_place.setdefault(cell.place, []).append(cell)
    found = []
    for place, mine in by_place.items():
        ended = [outcomes[cell.name] for cell in mine]
        scores = [one.holdout_nn_accuracy if one is not None else None for one in ended]
        is_open = any(one is None or one.state == STARTED for one in ended)
        tried = [
            (_setting(cell.tuning or {}), score) for cell, score in zip(mine, scores, strict=True)
        ]
        found.append(TuningChoice(*place, tried, None if is_open else best_score(scores)))
    return found


def _tuning_facts(grid: Grid, cells: Sequence[Cell]) -> str:
    first = next((cell for cell in cells if cell.tuning is not None), None)
    if first is None:
        return ""
    epochs, share = budget_of(first)["epochs"], budget_of(first)["holdout"]
    length = "as many epochs as the others" if epochs is None else f"{epochs} epochs"
    return (
        f"Each value was tried in one run of {length} with seed {first.seed}; the value "
        "whose student had the highest nearest-neighbor accuracy on the held-out training images, "
        f"{100 * share:g} % of them, was taken for all seeds. Validation images chose nothing."
    )


def _line(cell: Cell, outcome: Outcome | None) -> CellLine:
    if outcome is None:
        return CellLine(cell.name, "open", "", "")
    names = ["holdout_nn_accuracy"] if cell.tuning is not None else list(MEASURES)
    values = {**outcome.metrics, "holdout_nn_accuracy": outcome.holdout_nn_accuracy}
    numbers = [f"{values[name]:.3f}" for name in names if values.get(name) is not None]
    took = described_seconds(outcome.seconds) if outcome.seconds else ""
    return CellLine(cell.name, outcome.state, ", ".join(numbers), took)


def _notes(grid: Grid) -> list[str]:
    common = {name: value for name, value in grid.common.items() if name not in BUDGET}
    found = [f"All runs: {_setting(common)}."] if common else []
    found += [f"With {name}: {_setting(given)}." for name, given in grid.per_student.items()]
    found += ["The linear classifier is measured of trained students alone."] if grid.linear else []
    named = [method.name for method in grid.methods if method.is_reference]
    if named:
        found.append(f"Beside the comparison, as references: {', '.join(named)}.")
    return found
