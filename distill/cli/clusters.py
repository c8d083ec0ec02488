"""`distill clusters`: cluster alignment of a student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from distill.cli.parse import parse
from distill.evaluation.clusters import ClusterOptions

if TYPE_CHECKING:
    from distill.evaluation.clusters import Alignment

_EXAMPLES = """Measure a student: do the clusters of its embeddings agree with classes?

examples:
  distill clusters runs/first --data photos
      as many clusters as classes, each of which stands for one class
  distill clusters runs/first --data photos --num-clusters 100 --per-cluster
      of which at most as many as there are classes can stand for one
  distill clusters runs/first --data photos --restarts 1 --seed 1
      k-means once, as published, from other starting points
  distill clusters runs/first --data imagenet --minibatch 65536
      with so many embeddings in memory at a time
  distill clusters alexnet.pth --student alexnet --data photos
      weights of another origin
"""


@dataclass(frozen=True)
class ClusterCommand:
    """The arguments of `distill clusters`."""

    run_or_weights: tyro.conf.Positional[Path]
    """Run directory, student.safetensors, or other weights with --student."""
    options: ClusterOptions = field(default_factory=ClusterOptions)
    per_cluster: bool = False
    """Print what every cluster holds, too."""


def run(argv: list[str]) -> int:
    """Run `distill clusters`; return the exit status."""
    command = parse(ClusterCommand, argv, prog="distill clusters", description=_EXAMPLES)
    from distill.cli.parse import print_metrics
    from distill.evaluation.clusters import evaluate_clusters

    result = evaluate_clusters(command.run_or_weights, command.options)
    if command.per_cluster:
        _print_clusters(result.alignment, result.classes)
    print_metrics(result.metrics)
    for note in result.alignment.notes():
        print(note)
    return 0


def _print_clusters(alignment: Alignment, classes: Sequence[str]) -> None:
    from distill.cli.parse import print_table

    def named(label: int) -> str:
        return "-" if label < 0 else classes[label]

    rows = [
        [
            str(number),
            str(alignment.sizes[number]),
            named(alignment.mapping[number]),
            f"{alignment.matched_share[number]:.4f}",
            named(alignment.commonest[number]),
            f"{alignment.purity[number]:.4f}",
        ]
        for number in range(len(alignment.mapping))
    ]
    header = ["cluster", "images", "stands for", "share of it", "commonest class", "purity"]
    print_table(rows, header=header)
    print()
