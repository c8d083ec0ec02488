from __future__ import annotations

from typing import Any

import pytest

from distill.comparison.cells import Cell, cells_of
from distill.comparison.read_grid import parse_grid
from distill.comparison.remaining_time import seconds_left, seconds_per_epoch
from distill.comparison.state import DONE, STARTED, ComparisonDirectory, Outcome


@pytest.fixture
def cells() -> list[Cell]:
    grid: dict[str, Any] = {
        "common": {"epochs": 4},
        "teachers": ["pixels"],
        "students": ["resnet18", "alexnet"],
        "seeds": [0, 1],
        "methods": {"a": {"tune": {"temperature": [0.1, 1]}}, "b": {}},
        "tune_epochs": 2,
    }
    return cells_of(parse_grid(grid, source="grid"))


def find(cells: list[Cell], method: str, student: str, *, tuning: bool = False) -> Cell:
    return next(
        cell
        for cell in cells
        if (cell.method.name, cell.student) == (method, student)
        and (cell.tuning is not None) == tuning
    )


def test_a_run_takes_what_the_most_similar_ones_took_by_epochs(cells):
    made = [
        (find(cells, "a", "resnet18", tuning=True), 5.0),
        (find(cells, "b", "resnet18"), 25.0),
    ]
    assert seconds_per_epoch(find(cells, "a", "resnet18"), made) == 5
    assert seconds_per_epoch(find(cells, "b", "resnet18"), made) == 25
    assert seconds_per_epoch(find(cells, "b", "alexnet"), made) == (5 + 25) / 2
    assert seconds_per_epoch(find(cells, "b", "alexnet"), []) is None


def test_the_length_may_be_a_recipes(tmp_path):
    grid = {
        **{"teachers": ["pixels"], "students": ["alexnet"], "tune_epochs": 13},
        "methods": {"a": {"recipe": "published", "tune": {"temperature": [0.1, 1]}}},
    }
    directory = ComparisonDirectory(tmp_path)
    directory.make()
    first, second, whole = cells_of(parse_grid(grid, source="grid"))
    directory.write(first.name, Outcome(DONE, {}, seconds=26.0))
    directory.write(second.name, Outcome(DONE, {}, seconds=13.0))
    assert whole.tuning is None
    assert seconds_left([first, second, whole], directory) == 130.0


def test_what_is_left_counts_open_runs_and_forgets_the_teachers_pass(cells, tmp_path):
    directory = ComparisonDirectory(tmp_path)
    directory.make()
    assert seconds_left(cells, directory) is None
    directory.write(cells[0].name, Outcome(DONE, {}, seconds=1000.0))
    assert seconds_left(cells, directory) == 500.0 * (3 * 2 + 8 * 4)
    directory.write(cells[1].name, Outcome(DONE, {}, seconds=2.0))
    directory.write(cells[2].name, Outcome(STARTED, {}))
    assert seconds_left(cells, directory) == 1.0 * (2 * 2 + 8 * 4)
    for cell in cells:
        directory.write(cell.name, Outcome(DONE, {}, seconds=1.0))
    assert seconds_left(cells, directory) == 0.0
