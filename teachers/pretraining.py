"""The interface of a pre-training method, the registry of all four, and their heads.

A method is one file: SimCLR, C-SimCLR, BYOL, C-BYOL. It owns its mathematics, options, published
settings and heads; heads are dropped after training.

Source of the heads: Lee et al., Compressive Visual Representations, NeurIPS 2021.

Shapes: B images of this rank, D width of the backbone's embedding, P width of the projection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from distill.config import AtLeast1, Concentration, NonNegative, Share, as_options
from distill.losses.compress import default_momentum
from distill.registry import Registry

if TYPE_CHECKING:
    from typing_extensions import Self

Method = TypeVar("Method", bound="type[PretrainMethod]")
LONG_RUN = 1000  # epochs; from here on the published settings of the long runs hold
_REGRESSION_WEIGHTS = (5.0, 2.0)  # of short and long runs
_TARGET_MOMENTA = (0.99, 0.996)


class LossOutput(NamedTuple):
    """The loss of a batch and what users read beside it.

    Attributes:
        loss: 0-d, with gradient. Under several ranks that of this rank's rows; the mean over ranks
            is the loss of the global batch.
        logged: 0-d tensors without gradient by name, in nats except `byol_loss`. `i_xzx_y` is the
            residual information I(X;Z|Y) and `i_y_zx` the bound on I(Y;Z), of the first direction;
            `i_yzy_x` and `i_x_zy` of the second; `h_e_zx_x` = -log e and `h_b_zx_y` = -log b.
    """

    loss: Tensor
    logged: dict[str, Tensor]


@dataclass(frozen=True)
class HeadOptions:
    """Heads behind the backbone, of every method."""

    hidden_dim: AtLeast1 = 4096
    """Hidden width of the heads."""
    projection_dim: Annotated[int, Ge(2)] = 256
    """Output width of the heads."""


@dataclass(frozen=True)
class CompressionOptions:
    """Explicit compression (Conditional Entropy Bottleneck)."""

    beta: NonNegative = 1.0
    """Weight of the residual information I(X;Z|Y); 0: none."""
    beta_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """constant; linear, cosine: rises from 0 over beta_epochs."""
    beta_epochs: NonNegative | None = None
    """Epochs over which beta rises; None: a tenth of the epochs."""
    kappa_b: Concentration = 10.0
    """Concentration of the backward encoder b(z|y)."""


@dataclass(frozen=True)
class TargetOptions:
    """A momentum copy of backbone and head, which the method learns from."""

    regression_weight: NonNegative | None = None
    """Weight w of the regression; None: 5, from 1000 epochs on 2."""
    target_momentum: Share | None = None
    """First momentum of the target, rising to 1; None: by the number of steps."""


class PretrainMethod(nn.Module):
    """Heads and loss of a self-supervised method.

    Attributes:
        Options: Frozen dataclass: flags, YAML keys, help and ranges are made from it.
        lars_rates: Peak LARS rates per 256 images, of short and long runs.
        head: Follows the backbone, (B, D) -> (B, P).
        has_target: Whether `forward` needs a momentum copy's output, as its `Options` say.
    """

    Options: ClassVar[type[Any]] = HeadOptions
    lars_rates: ClassVar[tuple[float, float]] = (0.3, 0.2)
    head: nn.Module

    @property
    def has_target(self) -> bool:
        """Whether `forward` needs a momentum copy's output."""
        return issubclass(self.Options, TargetOptions)

    @classmethod
    def resolve(cls, options: Any, *, epochs: int, num_steps: int) -> Any:
        """Return `options` with every None that follows the length of the run filled in."""
        is_long, given = epochs >= LONG_RUN, {}
        if isinstance(options, CompressionOptions) and options.beta_epochs is None:
            given["beta_epochs"] = float(math.ceil(epochs / 10))
        if isinstance(options, TargetOptions) and options.regression_weight is None:
            given["regression_weight"] = _REGRESSION_WEIGHTS[is_long]
        if isinstance(options, TargetOptions) and options.target_momentum is None:
            published = _TARGET_MOMENTA[is_long]
            given["target_momentum"] = default_momentum(num_steps, published=published)
        return replace(options, **given)

    @classmethod
    def build(cls, options: Any, embedding_dim: int) -> Self:
        """Build heads and loss from resolved options, random (torch's global generator)."""
        raise NotImplementedError

    def forward(
        self,
        hidden: Tensor,
        target: Tensor | None = None,
        *,
        beta: float | None = None,
        generator: torch.Generator | None = None,
    ) -> LossOutput:
        """Return the loss of a batch.

        Args:
            hidden: What the head makes of the backbone's output, 2B x P: all first views, then all
                second views.
            target: What the momentum copy makes of the same views, 2B x P, without gradient; of a
                method with a target.
            beta: Weight of the residual information, >= 0; of a method with compression.
            generator: Draws z, likewise.
        """
        raise NotImplementedError

    def projection(self, hidden: Tensor) -> Tensor:
        """Return the unit vectors that the loss compares, B x P, from what the head says."""
        raise NotImplementedError


PRETRAIN_METHODS: Registry[type[PretrainMethod]] = Registry("method")


def register_pretrain_method(name: str) -> Callable[[Method], Method]:
    """Make a `PretrainMethod` a method of `distill pretrain --method NAME`."""

    def register(method: Method) -> Method:
        PRETRAIN_METHODS.add(name, method)
        return method

    return register


def build_heads(options: Mapping[str, Any], embedding_dim: int) -> PretrainMethod:
    """Return the method that a pre-training run's options describe, with random heads.

    Args:
        options: All of the run by name, as its config.yaml holds them.
        embedding_dim: Width of the backbone's embedding.

    Raises:
        DistillError: No such method, or a value of the wrong type or out of range.
    """
    method = PRETRAIN_METHODS.get(str(options.get("method")))
    own = {option.name for option in fields(method.Options)}
    given = {name: value for name, value in options.items() if name in own}
    chosen = as_options(method.Options, given, source="config.yaml")
    return method.build(method.resolve(chosen, epochs=1, num_steps=1), embedding_dim)


def mlp_head(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Build Linear, BatchNorm, ReLU, Linear, neither linear layer with a bias: B x D -> B x P."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, out_dim, bias=False),
    )


def directions(projections: Tensor) -> Tensor:
    """L2-normalize rows, in float32: B x P -> B x P."""
    return F.normalize(projections.float(), dim=1)
