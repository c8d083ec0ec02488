"""BYOL: one view's prediction meets the other view's momentum embedding; no negatives.

Source: Grill et al., Bootstrap Your Own Latent, NeurIPS 2020, eq. 2, with heads and weight w of Lee
et al., NeurIPS 2021. The target (a momentum copy of backbone and head) is given by the caller.

Shapes: B images, P width of the projection.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from teachers.pretraining import (
    HeadOptions,
    LossOutput,
    PretrainMethod,
    TargetOptions,
    directions,
    mlp_head,
    register_pretrain_method,
)


@register_pretrain_method("byol")
class BYOL(PretrainMethod):
    """The regression of two views on each other's target.

    Args:
        embedding_dim: Width of the backbone's embedding.
        hidden_dim: Hidden width of the heads.
        projection_dim: Output width of the heads, P.
        regression_weight: w, >= 0; multiplies the loss.
    """

    @dataclass(frozen=True)
    class Options(TargetOptions, HeadOptions):
        """BYOL: one view predicts what a momentum copy makes of the other."""

    def __init__(
        self,
        embedding_dim: int,
        *,
        hidden_dim: int = 4096,
        projection_dim: int = 256,
        regression_weight: float = 5.0,
    ) -> None:
        super().__init__()
        self.head = mlp_head(embedding_dim, hidden_dim, projection_dim)
        self.predictor = mlp_head(projection_dim, hidden_dim, projection_dim)
        self.regression_weight = regression_weight

    @classmethod
    def build(cls, options: Options, embedding_dim: int) -> BYOL:
        """Build it; see `PretrainMethod`."""
        assert options.regression_weight is not None
        return cls(
            embedding_dim,
            hidden_dim=options.hidden_dim,
            projection_dim=options.projection_dim,
            regression_weight=options.regression_weight,
        )

    def forward(self, hidden: Tensor, target: Tensor | None = None, **_: object) -> LossOutput:
        """Return the loss of a batch; see `PretrainMethod`."""
        assert target is not None, "byol learns from a target"
        (y1, y2), (t1, t2) = self.predictor(hidden).chunk(2), target.chunk(2)
        first, second = regression(y1, t2), regression(y2, t1)
        return LossOutput(self.regression_weight * (first + second), {"byol_loss": first.detach()})

    def projection(self, hidden: Tensor) -> Tensor:
        """Return the unit predictions, B x P, from what the head says."""
        return directions(self.predictor(hidden))


def regression(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of |y - t|^2 over unit vectors, 2 - 2 cos, in [0, 4]; B x P each -> 0-d."""
    difference = directions(predictions) - directions(targets)
    return difference.square().sum(dim=1).mean()
