"""A distillation method of one's own, in one file outside the package.

    distill --plugin examples/own_method.py --method cosine --teacher pixels --student resnet18

Its flags (`--margin`), YAML keys, help and ranges are made from `Options`. An installed package
needs no `--plugin`: it names its module under the entry-point group `distill.methods`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.config import Share
from distill.losses.base import BaselineOptions, BuildContext, DistillationLoss, register_method


@register_method("cosine", summary="cosine distance beyond a margin, through a linear layer")
class Cosine(DistillationLoss):
    """(1/B) sum_i max(0, 1 - cosine(W s_i + b, t_i) - margin).

    Args:
        teacher_dim: Width of the teacher's embedding.
        student_dim: Width of the student's embedding.
        margin: Distances up to it cost nothing.
    """

    @dataclass(frozen=True)
    class Options(BaselineOptions):
        """Options of `cosine`."""

        margin: Share = 0.0
        """Distance that costs nothing."""

    def __init__(self, teacher_dim: int, student_dim: int, *, margin: float = 0.0) -> None:
        super().__init__()
        self.head = nn.Linear(student_dim, teacher_dim)
        self.margin = margin

    @classmethod
    def build(cls, options: Options, context: BuildContext) -> Cosine:
        """Build it from its options."""
        return cls(context.teacher_dim, context.student_dim, margin=options.margin)

    def forward(
        self,
        teacher: Tensor,
        student: Tensor,
        index: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch: (B, Dt) and (B, Ds) -> 0-d."""
        distance = 1 - torch.cosine_similarity(self.head(student), teacher)
        return (distance - self.margin).clamp_min(0).mean()
