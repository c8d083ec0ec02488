"""`distill compare`: methods side by side on a grid of students, teachers and seeds."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from distill.cli.parse import parse
from distill.comparison.options import CompareOptions

if TYPE_CHECKING:
    from distill.comparison.job import ComparisonResult

INCOMPLETE = 3

_EXAMPLES = """Compare methods on a grid of students, teachers and seeds, with equal budgets: train
and measure every combination, then make a table, bars and curves.

examples:
  distill compare grid.yaml --dry-run
      check the grid, list the runs
  distill compare grid.yaml --output runs/comparison
      make all runs, tables and comparison.html
  distill compare grid.yaml --output runs/comparison --resume --stop-after 120
      go on where it stopped, for two hours
  distill compare grid.yaml --output runs/comparison --jobs 8
      eight runs at a time, each on a GPU of its own
  distill compare runs/comparison --table
      print the tables of what is there
  distill compare grid.yaml --only '*resnet18*seed0'
      a part of the grid

Exit status: 0 all runs are made, 1 some failed, 2 the request cannot be met, 3 some are not made
yet, 130 or 143 stopped by Ctrl-C or SIGTERM. docs/comparison-grid.md explains the grid.
"""


@dataclass(frozen=True)
class CompareCommand:
    """The arguments of `distill compare`."""

    grid: tyro.conf.Positional[Path]
    """YAML file of the grid, or the directory of a comparison."""
    options: CompareOptions = field(default_factory=CompareOptions)


def run(argv: list[str]) -> int:
    """Run `distill compare`; return the exit status."""
    command = parse(CompareCommand, argv, prog="distill compare", description=_EXAMPLES)
    from distill.comparison.job import compare

    result = compare(command.grid, command.options)
    if command.options.dry_run:
        return _print_plan(result, command.options.jobs)
    _print_tables(result)
    return _print_end(result, command)


def _print_plan(result: ComparisonResult, jobs: int) -> int:
    from distill.cli.parse import print_table

    print_table([(cell.name, cell.state) for cell in result.content.cells])
    left = _time_left(result, jobs)
    print(f"{result.num_runs} runs, {result.num_open} of them to be made{left}")
    return 0


def _print_tables(result: ComparisonResult) -> None:
    from distill.cli.parse import print_table
    from distill.reports.grid_content import RULE
    from distill.reports.grid_markdown import table_rows

    for table in result.content.tables:
        header, rows = table_rows(table)
        print(f"\n{table.title}")
        print_table(rows, header=header)
        for remark in table.remarks():
            print(remark)
    print(f"\n{RULE} Here the mark is *.")
    for name, error in result.content.failed:
        print(f"failed: {name}: {error}")


def _print_end(result: ComparisonResult, command: CompareCommand) -> int:
    size = f"{result.num_bytes / 2**20:,.0f} MiB"
    print(f"\neverything is in {result.output} ({size}); comparison.html shows it")
    if command.options.table:
        return 0
    if result.num_open:
        go_on = shlex.join(_command_to_go_on(result, command))
        why = f"stopped by {result.stopped_by}; " if result.stopped_by else ""
        made = result.num_runs - result.num_open
        left = _time_left(result, command.options.jobs)
        print(f"{why}{made} of {result.num_runs} runs are made{left}")
        print(f"go on with: {go_on}")
        return {"SIGINT": 130, "SIGTERM": 143}.get(result.stopped_by or "", INCOMPLETE)
    return 1 if result.num_failed else 0


def _command_to_go_on(result: ComparisonResult, command: CompareCommand) -> list[str]:
    options = command.options
    words = ["distill", "compare", str(command.grid), "--output", str(result.output), "--resume"]
    words += ["--only", options.only] if options.only is not None else []
    words += ["--jobs", str(options.jobs)] if options.jobs != 1 else []
    return words


def _time_left(result: ComparisonResult, jobs: int) -> str:
    from distill.terminal import described_seconds

    if not result.num_open:
        return ""
    if result.seconds_left is None:
        return "; how long they take is known when the first is made"
    return f", about {described_seconds(result.seconds_left / jobs)} left"
