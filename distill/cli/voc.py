"""`distill voc`: transfer of a student to PASCAL VOC."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from distill.cli.parse import parse
from distill.evaluation.voc import VocOptions

_EXAMPLES = """Transfer a student to PASCAL VOC, or to a dataset of your own in its layout.

examples:
  distill voc runs/first --data VOCdevkit
      classification: a linear support vector machine per class on the frozen student
  distill voc runs/first --data VOCdevkit --task detection
      detection: Faster R-CNN on the student, all layers fine-tuned
  distill voc runs/first --data VOCdevkit/VOC2012 --train-split train --test-split val
      other lists of images
"""


@dataclass(frozen=True)
class VocCommand:
    """The arguments of `distill voc`."""

    run_or_weights: tyro.conf.Positional[Path]
    """Run directory, student.safetensors, or other weights with --student."""
    options: VocOptions = field(default_factory=VocOptions)


def run(argv: list[str]) -> int:
    """Run `distill voc`; return the exit status."""
    command = parse(VocCommand, argv, prog="distill voc", description=_EXAMPLES)
    from distill.cli.parse import print_metrics, print_table
    from distill.evaluation.voc import measure_voc

    measured = measure_voc(command.run_or_weights, command.options)
    rows = [
        [name, *(_shown(measured.per_class[rule][i]) for rule in ("voc07", "area"))]
        for i, name in enumerate(measured.classes)
    ]
    print_table(rows, header=["class", "AP, 11 points", "AP, area"])
    print_metrics(measured.means())
    return 0


def _shown(precision: float) -> str:
    return "no object" if math.isnan(precision) else f"{precision:.4f}"
