"""Reg-BN: regression on the teacher's embedding, both sides standardized over the batch.

Source: the second regression baseline of CompRess (Abbasi Koohpayegani et al., NeurIPS 2020). It is
written from recollection of the paper, whose text was not at hand: a linear map of the student's
embedding, then BatchNorm without parameters on both sides, then the squared error,

    loss = (1/(B Dt)) sum_ij ( bn(W s + b)_ij - bn(t)_ij )^2.

BatchNorm stands in the place of the L2 norm of Reg. The mean is over rows and dimensions, so that
the loss of unrelated embeddings is 2 at any width. BatchNorm always takes the statistics of the
batch. The linear map is dropped after training.
Shapes: B rows of all ranks, at least 2; Dt and Ds widths.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.base import (
    BaselineOptions,
    BuildContext,
    DistillationLoss,
    check_counts,
    check_rows,
    register_method,
)


@register_method("reg-bn", summary="regression of standardized embeddings (in CompRess, 2020)")
class RegBN(DistillationLoss):
    """Squared error of standardized vectors, through a linear map of the student's.

    Args:
        teacher_dim: Dt.
        student_dim: Ds.

    Raises:
        DistillError: A width below 1.

    Example:
        >>> import torch
        >>> loss = RegBN(teacher_dim=8, student_dim=4)
        >>> loss(torch.randn(16, 8), torch.randn(16, 4)).shape
        torch.Size([])
    """

    @dataclass(frozen=True)
    class Options(BaselineOptions):
        """Options of `reg-bn`."""

    def __init__(self, teacher_dim: int, student_dim: int) -> None:
        super().__init__()
        check_counts(teacher_dim=teacher_dim, student_dim=student_dim)
        self.head = nn.Linear(student_dim, teacher_dim)

    @classmethod
    def build(cls, options: Options, context: BuildContext) -> RegBN:
        """Build it; see `DistillationLoss`."""
        return cls(context.teacher_dim, context.student_dim)

    def forward(
        self,
        teacher: Tensor,
        student: Tensor,
        index: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Return the loss; see `DistillationLoss`, of which index and label are not used."""
        check_rows(teacher, student)
        return standardized_error(teacher, self.head(student))


def standardized_error(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the mean squared difference of two matrices, each standardized by columns.

    A column's mean and variance are those of the rows given; 1e-5 is added to the variance, so that
    a column in which all rows agree counts nothing.

    Args:
        teacher: (B, D) float with B >= 2.
        student: (B, D) float.

    Returns:
        0-d: 0 where every column of one is that of the other scaled and shifted, 2 where they are
        unrelated.
    """

    def standardized(rows: Tensor) -> Tensor:
        return F.batch_norm(rows, None, None, training=True)

    return F.mse_loss(standardized(student), standardized(teacher))
