"""`distill compare`: methods side by side on a grid of students, teachers and seeds."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill.cli.command import Positional, command, parse, print_table

if TYPE_CHECKING:
    from distill.comparison.compare import ComparisonResult

INCOMPLETE = 3


@command("compare", "compare methods on a grid, with equal budgets")
def compare(argv: Sequence[str]) -> int:
    """Compare methods on a grid of students, teachers and seeds, with equal budgets.

    Every combination is trained and measured; then there are a table, bars and curves.

    Examples:
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
      distill compare docs/comparison/resnet18.json --table
          print the tables of a comparison whose comparison.json was kept
      distill compare grid.yaml --only '*resnet18*seed0'
          a part of the grid

    Exit status: 0 all runs are made, 1 some failed, 2 the request cannot be met, 3 some are not
    made yet, 130 or 143 stopped by Ctrl-C or SIGTERM. docs/comparison-grid.md explains the grid.
    """
    from distill.comparison.compare import CompareOptions, compare

    grid = Positional(Path, "YAML file of the grid, directory of a comparison, comparison.json.")
    given = parse("compare", argv, grid=grid, options=CompareOptions)
    options, result = given.options, compare(given.grid, given.options)
    if options.dry_run:
        print_table([(trial.name, trial.state) for trial in result.content.trials])
        left = _time_left(result, options.jobs)
        print(f"{result.num_runs} runs, {result.num_open} of them to be made{left}")
        return 0
    _print_tables(result)
    if options.table:
        return 0
    if not result.num_open:
        return 1 if result.num_failed else 0
    why = f"stopped by {result.stopped_by}; " if result.stopped_by else ""
    made = result.num_runs - result.num_open
    print(f"{why}{made} of {result.num_runs} runs are made{_time_left(result, options.jobs)}")
    words = ["distill", "compare", str(given.grid), "--output", str(result.output), "--resume"]
    words += ["--only", options.only] if options.only is not None else []
    words += ["--jobs", str(options.jobs)] if options.jobs != 1 else []
    print(f"go on with: {shlex.join(words)}")
    return {"SIGINT": 130, "SIGTERM": 143}.get(result.stopped_by or "", INCOMPLETE)


def _print_tables(result: ComparisonResult) -> None:
    from distill.reports.comparison_tables import RULE, table_rows

    for table in result.content.tables:
        header, rows = table_rows(table)
        print(f"\n{table.title}")
        print_table(rows, header=header)
        for remark in table.remarks():
            print(remark)
    print(f"\n{RULE} Here the mark is *.")
    for name, error in result.content.failed:
        print(f"failed: {name}: {error}")
    if result.output is not None:
        size = f"{result.num_bytes / 2**20:,.0f} MiB"
        print(f"\neverything is in {result.output} ({size}); comparison.html shows it")


def _time_left(result: ComparisonResult, jobs: int) -> str:
    from distill.terminal import described_seconds

    if not result.num_open:
        return ""
    if result.seconds_left is None:
        return "; how long they take is known when the first is made"
    return f", about {described_seconds(result.seconds_left / jobs)} left"
