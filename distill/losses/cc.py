"""CC, correlation congruence: the batch's matrix of similarities is the same in both spaces.

Source: Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019. Similarity is the
Gaussian kernel of unit vectors, by its Taylor series of order P (section 3.4),

    C(x, y) = exp(-gamma ||x - y||^2) = exp(-2 gamma) sum_p (2 gamma)^p / p! (x . y)^p,  p = 0..P,
    loss = (1/B^2) sum_ij ( C(s_i, s_j) - C(t_i, t_j) )^2.

The authors' released program computes another loss, `CCReleased`: with 128-d linear maps of both
embeddings and their differences d_i = |W_s s_i + b_s - W_t t_i - b_t| (by dimension),

    loss = (1/(B-1)) sum_i d_i . d_(i+1).

Departure of `CC`: it compares the embeddings themselves, without linear maps. A trained map of the
teacher's side could make all similarities equal, and the loss 0, whatever the student does.
Limit of `CCReleased`: its two maps have just that solution.
Shapes: B rows of all ranks, at least 2; Dt and Ds widths, D of the linear maps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.config import AtLeast1
from distill.errors import DistillError
from distill.losses.base import (
    BaselineOptions,
    BuildContext,
    DistillationLoss,
    check_counts,
    check_rows,
    register_method,
    unit_rows,
)


@register_method(
    "cc", summary="CC, correlation congruence: Gaussian similarities in a batch (ICCV 2019)"
)
class CC(DistillationLoss):
    """Squared difference of the two matrices of Gaussian similarities.

    Args:
        gamma: Of the kernel, > 0; .4 as published.
        order: P of the Taylor series, >= 1; 2 as published.

    Raises:
        DistillError: A number out of its range.

    Example:
        >>> rows = torch.randn(16, 8)
        >>> CC()(rows, rows).item()
        0.0
    """

    @dataclass(frozen=True)
    class Options(BaselineOptions):
        """Options of `cc`."""

    def __init__(self, *, gamma: float = 0.4, order: int = 2) -> None:
        super().__init__()
        check_counts(order=order)
        if not (math.isfinite(gamma) and gamma > 0):
            raise DistillError(f"gamma is {gamma}; it must be positive and finite")
        self.gamma, self.order = gamma, order

    def forward(
        self,
        teacher: Tensor,
        student: Tensor,
        index: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Return the loss; see `DistillationLoss`, of which index and label are not used."""
        check_rows(teacher, student)
        return F.mse_loss(self._similarities(student), self._similarities(teacher))

    def _similarities(self, embeddings: Tensor) -> Tensor:
        """Return the kernel of all pairs, B x B."""
        rows = unit_rows(embeddings)
        scaled = 2 * self.gamma * rows @ rows.T
        terms = [scaled**p / math.factorial(p) for p in range(self.order + 1)]
        return math.exp(-2 * self.gamma) * torch.stack(terms).sum(0)


@register_method("cc-released", summary="CC as its authors' program computes it")
class CCReleased(DistillationLoss):
    """Products of the differences of rows that follow each other, through two linear maps.

    Args:
        teacher_dim: Dt.
        student_dim: Ds.
        head_dim: D.

    Raises:
        DistillError: A width below 1.

    Example:
        >>> loss = CCReleased(teacher_dim=8, student_dim=4)
        >>> loss(torch.randn(16, 8), torch.randn(16, 4)).shape
        torch.Size([])
    """

    @dataclass(frozen=True)
    class Options(BaselineOptions):
        """Options of `cc-released`."""

        head_dim: AtLeast1 = 128
        """Width of the linear layers after teacher and student."""

    def __init__(self, teacher_dim: int, student_dim: int, *, head_dim: int = 128) -> None:
        super().__init__()
        check_counts(teacher_dim=teacher_dim, student_dim=student_dim, head_dim=head_dim)
        self.teacher_head = nn.Linear(teacher_dim, head_dim)
        self.student_head = nn.Linear(student_dim, head_dim)

    @classmethod
    def build(cls, options: CCReleased.Options, context: BuildContext) -> CCReleased:
        """Build it; see `DistillationLoss`."""
        return cls(context.teacher_dim, context.student_dim, head_dim=options.head_dim)

    def forward(
        self,
        teacher: Tensor,
        student: Tensor,
        index: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Return the loss; see `DistillationLoss`, of which index and label are not used."""
        check_rows(teacher, student)
        difference = (self.student_head(student) - self.teacher_head(teacher)).abs()
        return (difference[:-1] * difference[1:]).sum(1).mean()
