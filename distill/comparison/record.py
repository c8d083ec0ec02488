"""All numbers of a comparison for programs: comparison.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from distill.comparison.cells import Cell
from distill.comparison.state import ComparisonDirectory
from distill.comparison.tuning import tuned
from distill.reports.grid_content import GridContent


def comparison_record(
    content: GridContent,
    cells: Sequence[Cell],
    everything: Mapping[str, Cell],
    directory: ComparisonDirectory,
) -> dict[str, Any]:
    """Return all numbers as plain values: of every run, and of the tables."""
    tables = [
        {
            "student": table.student,
            "teacher": table.teacher,
            "rows": [
                {
                    "name": row.name,
                    "kind": row.kind,
                    "num_done": row.num_done,
                    "num_failed": row.num_failed,
                    "num_asked": row.num_asked,
                    "train_seconds": row.train_seconds,
                    **{n: None if v is None else asdict(v) for n, v in row.values.items()},
                    "best": [n for n in table.measures() if table.best(n) is row],
                }
                for row in table.rows
            ],
        }
        for table in content.tables
    ]
    return {
        "budget": dict(content.budget),
        "tables": tables,
        "tuning": [asdict(choice) for choice in content.tuning],
        "cells": [_cell_json(cell, everything, directory) for cell in cells],
    }


def _cell_json(
    cell: Cell, everything: Mapping[str, Cell], directory: ComparisonDirectory
) -> dict[str, Any]:
    outcome = directory.outcome(cell.name)
    found = {} if outcome is None else asdict(outcome)
    found["options"] = found.pop("asked", {})
    found["holdout_nn_accuracy"] = None if outcome is None else outcome.holdout_nn_accuracy
    return {
        "name": cell.name,
        "method": cell.method.name,
        "student": cell.student,
        "teacher": cell.teacher,
        "seed": cell.seed,
        "tuning": cell.tuning,
        "chosen": tuned(cell, everything, directory).values,
        "state": "open",
        **found,
    }
