"""The configuration of a pre-training run, as frozen dataclasses.

One name per option, as in `distill.config`, with which it shares images, optimization and run. An
option that is None follows method and data: `distill.engine.resolve_pretraining` fills it in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distill.config import ImageOptions, OptimizationOptions, RunOptions

MethodName = Literal["simclr", "c-simclr", "byol", "c-byol"]
COMPRESSING = ("c-simclr", "c-byol")
WITH_TARGET = ("byol", "c-byol")


@dataclass(frozen=True)
class BackboneOptions:
    """Which network is trained."""

    arch: str = "resnet18"
    """resnet18, resnet34, resnet50, resnet101 or resnet152."""
    width: float = 1.0
    """Factor of the width of every stage: 0.125, 0.25, 0.5, 1, 2 or 4."""
    stem: Literal["imagenet", "small"] | None = None
    """imagenet: 7 x 7, stride 2, max-pool; small: 3 x 3; None: small below 64 pixels."""


@dataclass(frozen=True)
class TwoViewOptions:
    """How the two views of an image differ."""

    augmentation: Literal["photo", "glyph", "none"] | None = None
    """photo: crop, flip, colour, blur, solarize, asymmetric as published; glyph: affine, contrast,
    blur, for digits, letters and signs; None: by data."""


@dataclass(frozen=True)
class PretrainMethodOptions:
    """The self-supervised method and its compression (Conditional Entropy Bottleneck)."""

    method: MethodName = "c-byol"
    """simclr, byol, or with explicit compression c-simclr, c-byol."""
    beta: float | None = None
    """Weight of the residual information I(X;Z|Y); 0: none; None: 1 for c-simclr and c-byol."""
    beta_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """constant; linear: rises from 0 over beta_epochs; cosine: rises from 0 over beta_epochs."""
    beta_epochs: float | None = None
    """Epochs over which beta rises; None: a tenth of the epochs."""
    kappa_e: float | None = None
    """Concentration of the forward encoder e(z|x); None: 1024 for c-simclr, 16384 for c-byol."""
    kappa_b: float = 10.0
    """Concentration of the backward encoder b(z|y); for simclr 1 / temperature."""
    backward_encoder: Literal["cross-view", "same-view"] = "cross-view"
    """Which view's target makes b(z|y) in c-byol: the other one, as in the bound, or the same, as
    in the released program."""
    regression_weight: float | None = None
    """Weight w of byol's regression; None: 5, from 1000 epochs on 2."""
    target_momentum: float | None = None
    """First momentum of byol's target, rising to 1; None: by the number of steps."""
    hidden_dim: int = 4096
    """Hidden width of the heads."""
    projection_dim: int = 256
    """Output width of the heads."""


@dataclass(frozen=True)
class AccumulationOptions:
    """How a step is cut to fit memory."""

    accumulate: int = 1
    """Parts that a batch is cut into, one after the other, for one step; negatives and batch
    statistics then come from a part, not from the whole batch."""


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides a pre-training run."""

    backbone: BackboneOptions = field(default_factory=BackboneOptions)
    images: ImageOptions = field(default_factory=ImageOptions)
    views: TwoViewOptions = field(default_factory=TwoViewOptions)
    method: PretrainMethodOptions = field(default_factory=PretrainMethodOptions)
    optimization: OptimizationOptions = field(default_factory=OptimizationOptions)
    accumulation: AccumulationOptions = field(default_factory=AccumulationOptions)
    run: RunOptions = field(default_factory=RunOptions)
