"""`distill pretrain`: flags over a recipe, then the job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from distill.cli.parse import parse
from distill.cli.training import default_config, print_recipe, report
from distill.config import PretrainConfig

_EXAMPLES = """Pre-train a teacher without labels: SimCLR, C-SimCLR, BYOL or C-BYOL.

examples:
  distill pretrain --method c-byol --width 0.25
      a small C-BYOL on scikit-learn's digits
  distill pretrain --method c-simclr --arch resnet18 --data photos --image-size 64 --beta 0.1
      SimCLR with a price of 0.1 on residual information
  distill pretrain --method c-byol --arch resnet50 --width 1 --data imagenet --recipe published-300
      the published settings
  torchrun --nproc-per-node 8 -m distill pretrain --method simclr --data imagenet
      a batch shared by eight processes
  distill pretrain --output runs/c-byol --resume
      go on with a run that was stopped
  distill --teacher runs/c-byol --student alexnet --data photos
      use the result
"""


@dataclass(frozen=True)
class PretrainCommand:
    """The flags of `distill pretrain`."""

    config: Annotated[PretrainConfig, tyro.conf.arg(name="")]
    print_config: bool = False
    """Check everything, print the resolved configuration as a recipe, and stop."""


def run(argv: list[str]) -> int:
    """Run `distill pretrain`; return the exit status."""
    default = PretrainCommand(default_config(argv, command="pretrain"))
    command = parse(
        PretrainCommand, argv, prog="distill pretrain", description=_EXAMPLES, default=default
    )
    if command.print_config:
        return _print_config(command.config)
    from distill.training.pretrain import pretrain

    return report(pretrain(command.config), command="distill pretrain")


def _print_config(config: PretrainConfig) -> int:
    from distill.device import pick_device
    from distill.training.pretrain import prepare_pretraining

    device = pick_device(config.run.device)
    return print_recipe(lambda: prepare_pretraining(config, device).config)
