"""The supervised student, as a reference line: cross-entropy on labels, no teacher.

A linear layer after the embedding, dropped after training, gives the logits; the loss is the mean
over the batch of -log softmax(logits)[label], in nats.
Shapes: B rows of all ranks, Ds width, C classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.base import DistillationLoss, check_counts


class Supervised(DistillationLoss):
    """Cross-entropy of a linear classifier.

    Args:
        student_dim: Ds.
        num_classes: C.

    Raises:
        DistillError: A number below 1.
    """

    def __init__(self, student_dim: int, num_classes: int) -> None:
        super().__init__()
        check_counts(student_dim=student_dim, num_classes=num_classes)
        self.head = nn.Linear(student_dim, num_classes)

    def forward(self, teacher: Tensor, student: Tensor, index: Tensor, label: Tensor) -> Tensor:
        """Return the loss; see `DistillationLoss`, of which teacher and index are not used."""
        return F.cross_entropy(self.head(student), label)
