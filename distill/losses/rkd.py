"""RKD, relational distillation: distances of pairs and angles of triplets are the teacher's.

Source: Park, Kim, Lu, Cho, Relational Knowledge Distillation, CVPR 2019. With the distances divided
by their mean over the pairs of different images and h the Huber loss (smooth L1, threshold 1),

    distance = mean_ij   h( |s_i - s_j| / mean - |t_i - t_j| / mean ),
    angle    = mean_ijk  h( cos(s_i, s_j, s_k) - cos(t_i, t_j, t_k) ),
    cos(x_i, x_j, x_k) = (x_i - x_j) . (x_k - x_j) / (|x_i - x_j| |x_k - x_j|),
    loss = distance_weight distance + angle_weight angle.

As in the authors' program the means are over all B^2 pairs and B^3 triplets, those with an image
twice included, which add nothing. Distances and angles come from the products of the centered rows.
Pairs nearer than a thousandth of the root mean square distance, which float32 cannot tell apart,
count as equal: distance 0, and 0 for the cosine of an angle with such a side.
Limits: memory grows with B^3, some 70 MB a tensor at B = 256.
Shapes: B rows of all ranks, at least 2; Dt and Ds widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.config import NonNegative
from distill.losses.base import (
    BaselineOptions,
    BuildContext,
    DistillationLoss,
    check_rows,
    check_weights,
    register_method,
)

_NEAR = 1e-6  # of the mean squared distance


@register_method("rkd", summary="RKD: distances and angles in a batch (CVPR 2019)")
class RKD(DistillationLoss):
    """Huber losses of distances and of angles.

    Args:
        distance_weight: >= 0; 25 as published.
        angle_weight: >= 0; 50 as published.

    Raises:
        DistillError: A weight is negative or not finite.

    Example:
        >>> import torch
        >>> rows = torch.randn(8, 5)
        >>> RKD()(rows, 3 * rows + 1) < 1e-3
        tensor(True)
    """

    @dataclass(frozen=True)
    class Options(BaselineOptions):
        """Options of `rkd`."""

        distance_weight: NonNegative = 25.0
        """Weight of the distances."""
        angle_weight: NonNegative = 50.0
        """Weight of the angles."""

    def __init__(self, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        check_weights(distance_weight=distance_weight, angle_weight=angle_weight)
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    @classmethod
    def build(cls, options: RKD.Options, context: BuildContext) -> RKD:
        """Build it; see `DistillationLoss`."""
        return cls(distance_weight=options.distance_weight, angle_weight=options.angle_weight)

    def forward(
        self,
        teacher: Tensor,
        student: Tensor,
        index: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Return the loss; see `DistillationLoss`, of which index and label are not used."""
        check_rows(teacher, student)
        of_teacher, of_student = _relations(teacher), _relations(student)
        distance = F.smooth_l1_loss(of_student[0], of_teacher[0])
        angle = F.smooth_l1_loss(of_student[1], of_teacher[1])
        return self.distance_weight * distance + self.angle_weight * angle


def _relations(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return distances over their mean, B x B, and cosines of angles, [j, i, k] at row j."""
    rows = embeddings - embeddings.mean(0)
    products = rows @ rows.T
    squares = products.diagonal()
    squared = squares[:, None] + squares - 2 * products
    apart = squared > _NEAR * squared.detach().mean()  # an image is not apart from itself
    distance = torch.where(apart, squared, 1).sqrt()  # the root of 0 has no gradient
    inverse = apart / distance
    distance = apart * distance
    num_pairs = len(rows) * (len(rows) - 1)
    mean = (distance.sum() / num_pairs).clamp_min(torch.finfo(distance.dtype).tiny)
    # (x_i - x_j) . (x_k - x_j), for all i and k at every j
    across = products - products[:, :, None] - products[:, None, :] + squares[:, None, None]
    return distance / mean, across * inverse[:, :, None] * inverse[:, None, :]
