"""`distill rerun`: a run again, and whether it came out the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from distill.cli.parse import parse
from distill.training.rerun import RerunOptions

if TYPE_CHECKING:
    from distill.training.rerun import Rerun

_EXAMPLES = """Train a finished run again as its directory says, and compare.

examples:
  distill rerun runs/first
      into runs/first-rerun
  distill rerun runs/first --data /elsewhere/photos --device cpu
      on a machine where the images lie elsewhere

Exit status: 0 the same weights, or every measure within --tolerance; 1 another result.
"""


@dataclass(frozen=True)
class RerunCommand:
    """The arguments of `distill rerun`."""

    run: tyro.conf.Positional[Path]
    """Run directory of `distill train` or `distill pretrain`."""
    options: RerunOptions = field(default_factory=RerunOptions)


def run(argv: list[str]) -> int:
    """Run `distill rerun`; return the exit status."""
    command = parse(RerunCommand, argv, prog="distill rerun", description=_EXAMPLES)
    from distill import distributed
    from distill.cli.training import report
    from distill.training.rerun import Rerun, changed_versions, rerun

    found = rerun(command.run, command.options)
    if not isinstance(found, Rerun):
        return report(found, command=f"distill rerun {command.run}")
    if distributed.is_main():
        for name, (then, now) in changed_versions(command.run).items():
            print(f"{name} was {then} and is {now}")
        _print(found)
    return 0 if found.is_same else 1


def _print(found: Rerun) -> None:
    from distill.cli.parse import print_table

    rows = [
        [name, f"{then:.4f}", f"{now:.4f}", f"{now - then:+.4f}"]
        for name, (then, now) in found.metrics.items()
    ]
    print_table(rows, header=["", "then", "now", "difference"])
    difference = found.weights_difference
    same = "the same, bit for bit" if difference == 0 else f"{difference:.2g} of their length apart"
    print(f"weights: {same}; {found.result.output}")
    if not found.is_same:
        print(f"another result: a measure differs by more than --tolerance {found.tolerance:g}")
