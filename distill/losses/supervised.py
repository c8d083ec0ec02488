"""The supervised student, as a reference line: cross-entropy on labels, no teacher.

A linear layer after the embedding, dropped after training, gives the logits; the loss is the mean
over the batch of -log softmax(logits)[label], in nats.
Shapes: B rows of all ranks, Ds width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import DistillError
from distill.losses.base import (
    BaselineOptions,
    BuildContext,
    DistillationLoss,
    check_counts,
    register_method,
    required,
)


@register_method(
    "supervised", summary="cross-entropy on labels, the line to compare with", teacher="never"
)
class Supervised(DistillationLoss):
    """Cross-entropy of a linear classifier.

    Args:
        student_dim: Ds.
        num_classes: C.

    Raises:
        DistillError: A number below 1.

    Example:
        >>> import torch
        >>> loss = Supervised(student_dim=4, num_classes=10)
        >>> student, label = torch.randn(16, 4), torch.arange(16) % 10
        >>> loss(torch.empty(16, 0), student, label=label).shape
        torch.Size([])
    """

    @dataclass(frozen=True)
    class Options(BaselineOptions):
        """Options of `supervised`."""

    def __init__(self, student_dim: int, num_classes: int) -> None:
        super().__init__()
        check_counts(student_dim=student_dim, num_classes=num_classes)
        self.head = nn.Linear(student_dim, num_classes)

    @classmethod
    def require_possible(cls, options: Options, context: BuildContext) -> None:
        """Refuse to learn from labels that are not there; see `DistillationLoss`."""
        if context.num_unlabeled:
            raise DistillError(
                f"--method supervised learns from labels, and {context.num_unlabeled} of the "
                f"{len(context.images)} images of {context.data_name} have none; put every image "
                "into a folder of its class under train/, or choose a method that needs none"
            )

    @classmethod
    def build(cls, options: Options, context: BuildContext) -> Supervised:
        """Build it; see `DistillationLoss`."""
        return cls(context.student_dim, context.num_classes)

    def forward(
        self,
        teacher: Tensor,
        student: Tensor,
        index: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Return the loss; see `DistillationLoss`, of which teacher and index are not used."""
        return F.cross_entropy(self.head(student), required(label, "label", "supervised"))
