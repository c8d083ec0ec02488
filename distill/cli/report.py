"""`distill report`: a page about a run, or several runs side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from distill.cli.parse import parse
from distill.reports.report import ReportOptions

_EXAMPLES = """Write one HTML file about a run: its numbers, curves, nearest neighbors, clusters
and a map. It needs no network and no other file.

examples:
  distill report runs/first
      runs/first/report.html
  distill report runs/first --data photos --output first.html
      for data that has moved since
  distill report runs/first runs/second --output both.html
      numbers side by side, curves overlaid
"""


@dataclass(frozen=True)
class ReportCommand:
    """The arguments of `distill report`."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories."""
    options: ReportOptions = field(default_factory=ReportOptions)


def run(argv: list[str]) -> int:
    """Run `distill report`; return the exit status."""
    command = parse(ReportCommand, argv, prog="distill report", description=_EXAMPLES)
    from distill.reports.report import report

    written = report(command.runs, command.options)
    print(f"the report is in {written} ({written.stat().st_size / 2**20:.1f} MiB)")
    return 0
