"""`distill measure`: how much trained networks compress, one row a run, and a plot of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from distill.cli.parse import parse
from distill.evaluation.measure import MeasureOptions

if TYPE_CHECKING:
    from distill.evaluation.measure import Measurement

_EXAMPLES = """Measure what networks compress: information between two views in nats, and lower
bounds on the Lipschitz constant. The definition is fixed and printed: runs of one width and image
size compare, whatever trained them.

examples:
  distill measure runs/c-byol --data photos
      through the heads of pre-training
  distill measure runs/beta-* runs/simclr --data photos --plot sweep.svg
      a row for each run, and residual information and Lipschitz bound against beta
  distill measure runs/first --data photos --layer backbone
      the embedding itself, which a distilled student has too
"""

_COLUMNS = (
    ("residual", "residual_information"),
    ("I(Y;Z) >=", "information_y_z"),
    ("entropy_b", "entropy_b"),
    ("view KL", "view_kl"),
    ("cosine", "view_cosine"),
    ("lipschitz sampled", "lipschitz_sampled"),
    ("ascended", "lipschitz_ascended"),
    ("KL lipschitz sampled", "kl_lipschitz_sampled"),
    ("ascended", "kl_lipschitz_ascended"),
)


@dataclass(frozen=True)
class MeasureCommand:
    """The arguments of `distill measure`."""

    runs_or_weights: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, student.safetensors or backbone.safetensors files, or other weights with
    --student."""
    options: MeasureOptions = field(default_factory=MeasureOptions)
    plot: Path | None = None
    """File, .png or .svg, for a plot of residual information and Lipschitz bound against beta."""


def run(argv: list[str]) -> int:
    """Run `distill measure`; return the exit status."""
    command = parse(MeasureCommand, argv, prog="distill measure", description=_EXAMPLES)
    from distill.evaluation.measure import measure
    from distill.evaluation.sweep import require_plot_path

    if command.plot is not None:
        require_plot_path(command.plot)
    measurements = measure(command.runs_or_weights, command.options)
    _print(measurements)
    if command.plot is not None:
        _plot(measurements, command.plot)
    return 0


def _print(measurements: list[Measurement]) -> None:
    from distill.cli.parse import print_table
    from distill.evaluation.measure import why_not_comparable

    for definition in dict.fromkeys(found.definition for found in measurements):
        print("\n".join(definition.lines()), end="\n\n")
    header = ["run", "method", "beta", *(title for title, _ in _COLUMNS)]
    print_table([_row(found) for found in measurements], header=header)
    problem = why_not_comparable([found.definition for found in measurements])
    if problem is not None:
        print(f"warning: not comparable: {problem}")


def _row(found: Measurement) -> list[str]:
    beta = "-" if found.beta is None else f"{found.beta:g}"
    numbers = [f"{found.numbers[name]:.4g}" for _, name in _COLUMNS]
    return [str(found.path), found.method, beta, *numbers]


def _plot(measurements: list[Measurement], path: Path) -> None:
    from distill.evaluation.sweep import SweepPoint, plot_sweep

    points = [
        SweepPoint(
            method=found.method,
            beta=found.beta,
            residual_information=found.numbers["residual_information"],
            lipschitz=found.numbers["lipschitz_ascended"],
        )
        for found in measurements
    ]
    plot_sweep(points, path)
    print(f"the plot is in {path}")
