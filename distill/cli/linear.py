"""`distill linear`: linear classifiers on a student's embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from distill.cli.parse import parse
from distill.evaluation.linear import LinearOptions

if TYPE_CHECKING:
    from distill.evaluation.linear import LinearReport

_EXAMPLES = """Measure a student: how well does one linear layer on its embeddings tell classes
apart?

examples:
  distill linear runs/first --data photos
      the published protocol: SGD, 40 epochs, learning rate 0.01
  distill linear runs/first --data photos --sweep
      and the best of 24 settings, trained at once, chosen on held-out training images
  distill linear runs/first --data photos --method logistic
      logistic regression by L-BFGS, a fast check
  distill linear runs/first --data photos --labels 0.01
      with 1 % of the labels: mean and standard deviation over five draws
  distill linear runs/first --data photos --layers all
      layer by layer
  distill linear alexnet.pth --student alexnet --data photos --augment
      weights of another origin, on random crops at every step
"""


@dataclass(frozen=True)
class LinearCommand:
    """The arguments of `distill linear`."""

    run_or_weights: tyro.conf.Positional[Path]
    """Run directory, student.safetensors, or other weights with --student."""
    options: LinearOptions = field(default_factory=LinearOptions)
    per_class: bool = False
    """Print the accuracy of every class, too."""


def run(argv: list[str]) -> int:
    """Run `distill linear`; return the exit status."""
    command = parse(LinearCommand, argv, prog="distill linear", description=_EXAMPLES)
    from distill.errors import DistillError
    from distill.evaluation.linear import evaluate_linear

    if command.per_class and command.options.layers:
        raise DistillError("--per-class does not go with --layers; leave one out")
    report = evaluate_linear(command.run_or_weights, command.options)
    _print(report, per_class=command.per_class)
    return 0


def _print(report: LinearReport, *, per_class: bool) -> None:
    from distill.cli.parse import print_metrics, print_table

    if report.table is not None:
        print(report.table.title)
        print_table(report.table.rows, header=report.table.header)
        print()
    if per_class:
        rows = [(name, f"{accuracy:.4f}") for name, accuracy in report.per_class.items()]
        print_table(rows, header=["class", "accuracy"])
        print()
    print_metrics({name: _shown(name, value) for name, value in report.metrics.items()})


def _shown(name: str, value: float) -> float | str:
    """Write a weight decay of 1e-5 as such, not as 0.0000."""
    return f"{value:g}" if name.startswith("linear_sweep") else value
