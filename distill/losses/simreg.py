"""SimReg: regression on the teacher's embedding through an MLP that is dropped afterwards.

Source: Navaneet, Koohpayegani, Tejankar, Pirsiavash, SimReg: Regression as a Simple Yet Effective
Tool for Self-supervised Knowledge Distillation, BMVC 2021. The loss is that of Reg,

    loss = (1/B) sum_i || u(g(s_i)) - u(t_i) ||^2,    u(x) = x / ||x||,

and g the predictor of four linear layers, of widths Ds -> 2 Ds -> Ds -> 2 Ds -> Dt, with BatchNorm
and ReLU after the first and the third.
Shapes: B rows of all ranks, at least 2; Dt and Ds widths.
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
)
from distill.losses.reg import squared_error


@register_method("simreg", summary="SimReg: regression through an MLP (BMVC 2021)")
class SimReg(DistillationLoss):
    """Squared error of unit vectors, through an MLP after the student.

    Args:
        teacher_dim: Dt.
        student_dim: Ds.

    Raises:
        DistillError: A width below 1.

    Example:
        >>> import torch
        >>> loss = SimReg(teacher_dim=8, student_dim=4)
        >>> loss(torch.randn(16, 8), torch.randn(16, 4)).shape
        torch.Size([])
    """

    @dataclass(frozen=True)
    class Options(BaselineOptions):
        """Options of `simreg`."""

    def __init__(self, teacher_dim: int, student_dim: int) -> None:
        super().__init__()
        check_counts(teacher_dim=teacher_dim, student_dim=student_dim)
        hidden = 2 * student_dim
        self.head = nn.Sequential(
            nn.Linear(student_dim, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, student_dim),
            nn.Linear(student_dim, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, teacher_dim),
        )

    @classmethod
    def build(cls, options: Options, context: BuildContext) -> SimReg:
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
