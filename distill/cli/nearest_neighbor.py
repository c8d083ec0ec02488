"""`distill nn`: nearest-neighbor accuracy of a student."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from distill.cli.parse import parse
from distill.evaluation.nn import NearestNeighborOptions

if TYPE_CHECKING:
    from distill.evaluation.agreement import Agreement
    from distill.evaluation.nn import NearestNeighborScores

_EXAMPLES = """Measure a student: is an image of the class of its nearest training image?

examples:
  distill nn runs/first --data photos
      the number that training printed, from the run's student
  distill nn runs/first --data photos --k 1 5 20 --vote weighted
      several numbers of neighbors, of which nearer ones count more
  distill nn runs/first --data photos --per-class --confusion confusion.csv
      class by class, and which was taken for which
  distill nn runs/first --data photos --k 1 5 20 --agreement
      and how many of the teacher's neighbors the student keeps
  distill nn runs/first --data imagenet --ivf
      through inverted lists, with what that misses
  distill nn alexnet.pth --student alexnet --data photos
      weights of another origin
"""

_MAX_PRINTED = 20


@dataclass(frozen=True)
class NearestNeighborCommand:
    """The arguments of `distill nn`."""

    run_or_weights: tyro.conf.Positional[Path]
    """Run directory, student.safetensors, or other weights with --student."""
    options: NearestNeighborOptions = field(default_factory=NearestNeighborOptions)
    per_class: bool = False
    """Print the accuracy of every class and what it is taken for, at the first --k."""
    confusion: Path | None = None
    """CSV file for the counts of true (rows) and predicted classes (columns) at the first --k; up
    to 20 classes are printed, too."""


def run(argv: list[str]) -> int:
    """Run `distill nn`; return the exit status."""
    command = parse(NearestNeighborCommand, argv, prog="distill nn", description=_EXAMPLES)
    from distill.cli.parse import print_metrics
    from distill.evaluation.nn import evaluate_nn
    from distill.files import require_file_place

    if command.confusion is not None:
        require_file_place(command.confusion, flag="--confusion", example="confusion.csv")
    result = evaluate_nn(command.run_or_weights, command.options)
    if result.scores is not None and command.per_class:
        _print_by_class(result.scores, result.classes, k=command.options.k[0])
    if result.scores is not None and command.confusion is not None:
        _confusion(result.scores, result.classes, k=command.options.k[0], file=command.confusion)
    if result.agreement is not None:
        _print_agreement(result.agreement)
    print_metrics(result.metrics)
    return 0


def _print_by_class(scores: NearestNeighborScores, classes: Sequence[str], *, k: int) -> None:
    from distill.cli.parse import print_table

    rows = []
    for one in scores.by_class(k):
        wrong = one.confused_with
        taken = "" if wrong is None else f"{classes[wrong]} ({one.confused_share:.4f})"
        rows.append([classes[one.label], str(one.num_images), f"{one.accuracy:.4f}", taken])
    print_table(rows, header=["class", "images", f"k = {k}", "most often taken for"])
    print()


def _confusion(
    scores: NearestNeighborScores, classes: Sequence[str], *, k: int, file: Path
) -> None:
    """Write the counts to a file, and print them unless they are too many to read."""
    from distill.cli.parse import print_table
    from distill.files import atomic_write

    names = [classes[label] for label in scores.classes(k)]
    counts = [[str(count) for count in row] for row in scores.confusion(k)]
    content = io.StringIO(newline="")
    table = csv.writer(content)
    table.writerow(["true class", *names])
    table.writerows([name, *row] for name, row in zip(names, counts, strict=True))
    atomic_write(file, content.getvalue().encode())
    if len(names) <= _MAX_PRINTED:
        letters = [str(number) for number in range(len(names))]
        rows = [
            [f"{number} {name}", *row]
            for number, name, row in zip(letters, names, counts, strict=True)
        ]
        print_table(rows, header=["true, then predicted", *letters])
        print()


def _print_agreement(agreement: Agreement) -> None:
    from distill.cli.parse import print_table

    found = agreement.found
    print(
        f"share of the teacher's k nearest images that are the student's: {found.num_sampled:,} of "
        f"{found.num_images:,} images of {agreement.images}, among each other"
    )
    rows = [
        [str(k), f"{share:.4f}", f"{found.chance(k):.4f}"] for k, share in found.agreement.items()
    ]
    print_table(rows, header=["k", "agreement", "by chance"])
    print()
