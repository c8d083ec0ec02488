"""What `distill linear` can be asked for, and what contradicts itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from distill.errors import DistillError
from distill.evaluation.label_subsets import class_balanced_subset
from distill.evaluation.linear_heads import HeadSetting
from distill.jobs.measurement import MeasurementOptions

_MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class LinearOptions(MeasurementOptions):
    """How `distill linear` measures."""

    method: Literal["sgd", "logistic"] = "sgd"
    """sgd: as published; logistic: L-BFGS, a fast check whose penalty is chosen on held-out
    training images."""
    sweep: bool = False
    """Also train a head for every pair of --learning-rates and --weight-decays, chosen on held-out
    training images."""
    learning_rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    """Of the sweep."""
    weight_decays: tuple[float, ...] = (0.0, 1e-5, 1e-4, 1e-3)
    """Of the sweep."""
    labels: str | None = None
    """Learn from few labels: a share of every class (0.01, 0.1) or a file with an image name a
    line."""
    label_seeds: int = 5
    """How many times to draw the share, for mean and standard deviation."""
    layers: tuple[str, ...] = ()
    """Inner layers instead of the embedding: all, conv1 ... fc7 (AlexNet), stage1 ... stage4
    (ResNets), or module paths."""
    augment: bool = False
    """Learn from random crops and flips, embedded anew at every step, instead of one embedding per
    image."""
    seed: int = 0
    """Of the heads' start, of the order of images, and of what is held out or labelled."""

    @property
    def fraction(self) -> float | None:
        """The share that `labels` gives; None when it names a file, or without it."""
        try:
            return None if self.labels is None else float(self.labels)
        except ValueError:
            return None

    @property
    def settings(self) -> list[HeadSetting]:
        """The settings of the sweep; none without one.

        Raises:
            DistillError: A learning rate or weight decay out of range.
        """
        if not self.sweep:
            return []
        return [
            HeadSetting(rate, decay) for rate in self.learning_rates for decay in self.weight_decays
        ]


def check_linear(options: LinearOptions) -> None:
    """Refuse values out of range and flags that contradict each other.

    Raises:
        DistillError: One sentence per problem.
    """
    problems = []
    if not 0 <= options.seed <= _MAX_SEED:
        problems.append(f"--seed is {options.seed}, it must be between 0 and {_MAX_SEED}")
    if options.label_seeds < 1:
        problems.append(f"--label-seeds is {options.label_seeds}, it must be at least 1")
    if options.sweep and not (options.learning_rates and options.weight_decays):
        problems.append("--sweep needs a value of --learning-rates and one of --weight-decays")
    against = [
        ("--sweep", options.sweep, "--method logistic", options.method == "logistic"),
        ("--augment", options.augment, "--method logistic", options.method == "logistic"),
        ("--augment", options.augment, "--layers", bool(options.layers)),
        ("--labels", options.labels is not None, "--layers", bool(options.layers)),
    ]
    problems += [f"{a} does not go with {b}; leave one out" for a, x, b, y in against if x and y]
    if problems:
        raise DistillError("; ".join(problems))
    _ = options.settings  # refuses what no head can be trained with
    if options.fraction is not None:
        class_balanced_subset(np.arange(2), options.fraction, seed=0)  # refuses what is no share
