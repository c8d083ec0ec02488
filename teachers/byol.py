"""BYOL: one view's prediction meets the other view's momentum embedding; no negatives.

Source: Grill et al., Bootstrap Your Own Latent, NeurIPS 2020, eq. 2, with heads and weight w of Lee
et al., NeurIPS 2021. The target (a momentum copy of backbone and head) is given by the caller.

Shapes: B images, P width of the projection.
"""

from __future__ import annotations

from torch import Tensor, nn

from teachers.heads import Outcome, directions, mlp_head


class BYOL(nn.Module):
    """The regression of two views on each other's target.

    Args:
        embedding_dim: Width of the backbone's embedding.
        hidden_dim: Hidden width of the heads.
        projection_dim: Output width of the heads, P.
        regression_weight: w, >= 0; multiplies the loss.
    """

    has_target = True

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

    def forward(self, hidden: Tensor, target: Tensor | None = None, **_: object) -> Outcome:
        """Return the loss of a batch.

        Args:
            hidden: What the head says, 2B x P: all first views, then all second views.
            target: What the momentum copy says of the same views, 2B x P, without gradient.
        """
        assert target is not None, "byol learns from a target"
        (y1, y2), (t1, t2) = self.predictor(hidden).chunk(2), target.chunk(2)
        first, second = regression(y1, t2), regression(y2, t1)
        return Outcome(self.regression_weight * (first + second), {"byol_loss": first.detach()})

    def projection(self, hidden: Tensor) -> Tensor:
        """Return the unit predictions, B x P, from what the head says."""
        return directions(self.predictor(hidden))


def regression(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of |y - t|^2 over unit vectors, 2 - 2 cos, in [0, 4]; B x P each -> 0-d."""
    difference = directions(predictions) - directions(targets)
    return difference.square().sum(dim=1).mean()
