"""Every evaluation as a command: its options are the flags, its result is printed."""

from __future__ import annotations

from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from distill.cli.parse import parse, print_table
from distill.evaluation.base import (
    EVALUATIONS,
    EvaluationResult,
    describe_metric,
    run_evaluation,
)

_ONE = "Run directory, student.safetensors, or other weights with --student."
_SEVERAL = (
    "Run directories, student.safetensors or backbone.safetensors files, or other weights with "
    "--student."
)


def run(name: str, argv: list[str]) -> int:
    """Run `distill NAME`; return the exit status."""
    evaluation = EVALUATIONS.get(name)
    several = evaluation.accepts_several_runs
    runs_type: Any = tuple[Path, ...] if several else Path
    positional = Annotated[runs_type, tyro.conf.arg(help=_SEVERAL if several else _ONE)]
    runs_field = "runs_or_weights" if several else "run_or_weights"
    command: Any = make_dataclass(
        "Command",
        [
            (runs_field, tyro.conf.Positional[positional]),
            ("options", evaluation.Options, field(default_factory=evaluation.Options)),
        ],
        frozen=True,
    )
    if any(option.name.startswith("no_") for option in fields(evaluation.Options)):
        command = tyro.conf.configure(tyro.conf.FlagCreatePairsOff)(command)
    description = f"{evaluation.__doc__}\n\nexamples:\n{evaluation.examples}\n"
    given = parse(command, argv, prog=f"distill {name}", description=description)
    runs = getattr(given, runs_field)
    result = run_evaluation(evaluation, runs if several else [runs], given.options)
    print_result(result, with_metrics=not evaluation.tables_show_metrics)
    return 0


def print_result(result: EvaluationResult, *, with_metrics: bool) -> None:
    """Print the tables, the numbers by name and the notes, with empty lines between tables."""
    numbers = [
        (name, _shown(name, value))
        for name, value in result.metrics.items()
        if with_metrics and isinstance(value, (int, float))
    ]
    for position, table in enumerate(result.tables):
        if table.title:
            print(table.title)
        print_table(table.rows, header=table.header)
        if numbers or position + 1 < len(result.tables):
            print()
    if numbers:
        print_table(numbers)
    for note in result.notes:
        print(note)


def _shown(name: str, value: float) -> str:
    meaning = describe_metric(name)
    return f"{value:.4f}" if meaning is None or meaning.unit == "share of 1" else f"{value:g}"
