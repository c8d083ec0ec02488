"""SP, similarity preserving: images that the teacher finds similar, the student does, too.

Source: Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, eq. 1-4, on the
embeddings alone: with the rows r of A A^T scaled to unit norm, r(A), for each network's matrix A of
the batch,

    loss = (1/B^2) || r(T T^T) - r(S S^T) ||_F^2.

Embeddings are taken as they come, of any length, as published.
Shapes: B rows of all ranks, Dt and Ds widths.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from distill.losses.base import DistillationLoss, check_rows, unit_rows


class SP(DistillationLoss):
    """Squared difference of the two matrices of products, row by row of unit norm."""

    def forward(self, teacher: Tensor, student: Tensor, index: Tensor, label: Tensor) -> Tensor:
        """Return the loss; see `DistillationLoss`, of which index and label are not used."""
        check_rows(teacher, student)
        return F.mse_loss(unit_rows(student @ student.T), unit_rows(teacher @ teacher.T))
