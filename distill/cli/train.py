"""`distill train`: flags over a recipe, then the job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from distill.cli.parse import parse
from distill.cli.training import default_config, print_recipe, report
from distill.config import TrainConfig

_EXAMPLES = """Train a student from a frozen teacher.

examples:
  distill --teacher pixels --student resnet18 --epochs 2
      on scikit-learn's digits, nothing to download
  distill --teacher timm:resnet50 --student resnet18 --data photos
      a timm teacher on a folder with train/ and val/ class folders, or on unlabeled images
  distill --teacher r50x4 --student alexnet --data imagenet --recipe published
      a published checkpoint (SimCLR ResNet-50 4x, fetched on first use), the paper's settings
  torchrun --nproc-per-node 8 -m distill train --teacher timm:resnet50 --student resnet18
      --data imagenet --recipe published
      batches and anchors shared by eight processes
  distill --output runs/photos --resume
      go on with a run that was stopped; a command that also says what to train begins it at first
  distill --teacher pixels --student resnet18 --print-config > my.yaml
      write down every option; `--recipe my.yaml` reads them back
"""


@dataclass(frozen=True)
class TrainCommand:
    """The flags of `distill train`."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    print_config: bool = False
    """Check everything, print the resolved configuration as a recipe, and stop."""


def run(argv: list[str]) -> int:
    """Run `distill train`; return the exit status."""
    default = TrainCommand(default_config(argv, command="train"))
    command = parse(
        TrainCommand, argv, prog="distill train", description=_EXAMPLES, default=default
    )
    if command.print_config:
        return _print_config(command.config)
    from distill.training.train import train

    return report(train(command.config), command="distill")


def _print_config(config: TrainConfig) -> int:
    from distill.device import pick_device
    from distill.training.setup import prepare

    return print_recipe(lambda: prepare(config, pick_device(config.run.device)).config)
