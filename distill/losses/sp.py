"""SP, similarity preserving: images that the teacher finds similar, the student does, too.

Source: Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, eq. 1-4, on the
embeddings alone: with the rows r of A A^T scaled to unit norm, r(A), for each network's matrix A of
the batch,

    loss = (1/B^2) || r(T T^T) - r(S S^T) ||_F^2.

Embeddings are taken as they come, of any length, as published.
Shapes: B rows of all ranks, Dt and Ds widths.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from distill.config import Positive
from distill.losses.base import (
    BaselineOptions,
    DistillationLoss,
    check_rows,
    register_method,
    unit_rows,
)


@register_method("sp", summary="SP, similarity preserving: products in a batch (ICCV 2019)")
class SP(DistillationLoss):
    """Squared difference of the two matrices of products, row by row of unit norm.

    Example:
        >>> import torch
        >>> rows = torch.randn(16, 8)
        >>> SP()(rows, 2 * rows).item()
        0.0
    """

    @dataclass(frozen=True)
    class Options(BaselineOptions):
        """Options of `sp`."""

        # The loss is near 1/B without a weight, where Adam's epsilon would count.
        loss_weight: Positive = 3000.0
        """Factor of the loss."""

    def forward(
        self,
        teacher: Tensor,
        student: Tensor,
        index: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Return the loss; see `DistillationLoss`, of which index and label are not used."""
        check_rows(teacher, student)
        return F.mse_loss(unit_rows(student @ student.T), unit_rows(teacher @ teacher.T))
