"""Reg: the student's embedding, linearly mapped, is regressed on the teacher's.

Source: the regression baseline of CompRess (Abbasi Koohpayegani et al., NeurIPS 2020):

    loss = (1/B) sum_i || u(W s_i + b) - u(t_i) ||^2,    u(x) = x / ||x||,

which is 2 - 2 cosine, in [0, 4]. The linear map is dropped after training.
Shapes: B rows of all ranks, Dt and Ds widths.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from distill.losses.base import (
    BaselineOptions,
    BuildContext,
    DistillationLoss,
    check_counts,
    check_rows,
    register_method,
    unit_rows,
)


@register_method("reg", summary="regression through a linear layer (in CompRess, 2020)")
class Reg(DistillationLoss):
    """Squared error of unit vectors, through a linear map of the student's.

    Args:
        teacher_dim: Dt.
        student_dim: Ds.

    Raises:
        DistillError: A width below 1.

    Example:
        >>> import torch
        >>> loss = Reg(teacher_dim=8, student_dim=4)
        >>> loss(torch.randn(16, 8), torch.randn(16, 4)).shape
        torch.Size([])
    """

    @dataclass(frozen=True)
    class Options(BaselineOptions):
        """Options of `reg`."""

    def __init__(self, teacher_dim: int, student_dim: int) -> None:
        super().__init__()
        check_counts(teacher_dim=teacher_dim, student_dim=student_dim)
        self.head = nn.Linear(student_dim, teacher_dim)

    @classmethod
    def build(cls, options: Options, context: BuildContext) -> Reg:
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
        return squared_error(self.head(student), teacher)


def squared_error(predicted: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over rows of the squared distance between the unit vectors of two matrices.

    Args:
        predicted: (B, D).
        teacher: (B, D).
    """
    return (unit_rows(predicted) - unit_rows(teacher)).square().sum(1).mean()
