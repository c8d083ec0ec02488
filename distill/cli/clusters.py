"""`distill clusters`: cluster alignment of a student."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from distill.cli.parse import parse
from distill.jobs.clusters import ClusterOptions

_EXAMPLES = """Measure a student: do the clusters of its embeddings agree with classes?

examples:
  distill clusters runs/first --data photos
      as many clusters as classes, each of which stands for one class
  distill clusters runs/first --data photos --seed 1
      from other starting points
  distill clusters alexnet.pth --student alexnet --data photos
      weights of another origin
"""


@dataclass(frozen=True)
class ClusterCommand:
    """The arguments of `distill clusters`."""

    run_or_weights: tyro.conf.Positional[Path]
    """Run directory, student.safetensors, or other weights with --student."""
    options: ClusterOptions = field(default_factory=ClusterOptions)


def run(argv: list[str]) -> int:
    """Run `distill clusters`; return the exit status."""
    command = parse(ClusterCommand, argv, prog="distill clusters", description=_EXAMPLES)
    from distill.cli.table import print_metrics
    from distill.jobs.clusters import evaluate_clusters

    print_metrics(evaluate_clusters(command.run_or_weights, command.options))
    return 0
