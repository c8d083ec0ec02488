"""`distill robustness`: errors of a student under corruption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from distill.cli.parse import parse
from distill.evaluation.robustness import RobustnessOptions

if TYPE_CHECKING:
    from distill.evaluation.robustness import CorruptionResult
    from distill.evaluation.shifts import ShiftRow

_EXAMPLES = """Measure a student, and its teacher, on images that are not as those of training.

examples:
  distill robustness runs/first --data photos --num-images 1000
      ImageNet-C's fifteen corruptions at five severities, of 1,000 validation images
  distill robustness runs/first --data photos --corruptions fog snow --severities 3
      two of them
  distill robustness runs/first --data photos --head linear --no-teacher
      with a logistic regression instead of nearest neighbors, of the student alone
  distill robustness runs/first --data imagenet --corruptions none --shifted imagenet-a imagenet-r
      images from elsewhere only
  distill robustness runs/first --data imagenet --corruptions none --frames vid/frames.csv
      video frames that all must be right with their neighbors
"""


@tyro.conf.configure(tyro.conf.FlagCreatePairsOff)
@dataclass(frozen=True)
class RobustnessCommand:
    """The arguments of `distill robustness`."""

    run_or_weights: tyro.conf.Positional[Path]
    """Run directory, student.safetensors, or other weights with --student."""
    options: RobustnessOptions = field(default_factory=RobustnessOptions)


def run(argv: list[str]) -> int:
    """Run `distill robustness`; return the exit status."""
    command = parse(RobustnessCommand, argv, prog="distill robustness", description=_EXAMPLES)
    from distill.cli.parse import print_table
    from distill.evaluation.robustness import evaluate_robustness

    result = evaluate_robustness(command.run_or_weights, command.options)
    if result.corrupted:
        print_table(*_corruption_table(result.corrupted))
    if result.shifts:
        print_table(*_shift_table(result.shifts))
    for note in result.notes:
        print(note)
    return 0


def _corruption_table(
    results: Sequence[CorruptionResult],
) -> tuple[list[list[str]], list[str]]:
    """Return rows and header: a row per corruption, error and gap to clean of every network."""
    from distill.evaluation.robustness import mean_corruption_error, mean_error

    header = ["error"]
    columns = [["clean", *results[0].errors, "mean"]]
    for result in results:
        header += [result.role, "- clean"]
        errors = [*result.means().values(), mean_error(result.errors)]
        columns.append([f"{error:.4f}" for error in (result.clean_error, *errors)])
        columns.append(["", *(f"{error - result.clean_error:+.4f}" for error in errors)])
    if any(result.why_no_mce is None for result in results):
        columns[0].append("mCE")
        for number, result in enumerate(results):
            defined = result.why_no_mce is None
            mce = f"{mean_corruption_error(result.errors):.4f}" if defined else "-"
            columns[2 * number + 1].append(mce)
            columns[2 * number + 2].append("")
    return [list(row) for row in zip(*columns, strict=True)], header


def _shift_table(shifts: Sequence[ShiftRow]) -> tuple[list[list[str]], list[str]]:
    """Return rows and header: a row per set, plain and restricted accuracy of every network."""
    header = ["accuracy"]
    for role in dict.fromkeys(row.role for row in shifts):
        header += [role, "among its classes"]
    lines: dict[str, list[str]] = {}
    for row in shifts:
        line = lines.setdefault(row.metric, [row.measure])
        line += [f"{row.plain:.4f}", f"{row.restricted:.4f}"]
    return list(lines.values()), header
