"""`distill nn`: nearest-neighbour accuracy of a student."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from distill.cli.parse import parse
from distill.jobs.nearest_neighbour import NearestNeighbourOptions

_EXAMPLES = """Measure a student: is an image of the class of its nearest training image?

examples:
  distill nn runs/first --data photos
      the number that training printed, from the run's student
  distill nn runs/first --data photos --k 20 --vote weighted
      twenty neighbours, nearer ones count more
  distill nn alexnet.pth --student alexnet --data photos
      weights of another origin
"""


@dataclass(frozen=True)
class NearestNeighbourCommand:
    """The arguments of `distill nn`."""

    run_or_weights: tyro.conf.Positional[Path]
    """Run directory, student.safetensors, or other weights with --student."""
    options: NearestNeighbourOptions = field(default_factory=NearestNeighbourOptions)


def run(argv: list[str]) -> int:
    """Run `distill nn`; return the exit status."""
    command = parse(NearestNeighbourCommand, argv, prog="distill nn", description=_EXAMPLES)
    from distill.cli.table import print_metrics
    from distill.jobs.nearest_neighbour import evaluate_nn

    print_metrics(evaluate_nn(command.run_or_weights, command.options))
    return 0
