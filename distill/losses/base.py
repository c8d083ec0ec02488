"""What a baseline is: a loss between the teacher's and the student's embeddings of a batch.

It sees the rows of all ranks at once and does the same on every rank, so that heads, BatchNorm in
heads and memories need to know nothing of ranks. Heads are its parameters: they are trained with
the student and dropped afterwards. What it remembers between steps is in its `state_dict`, random
draws included, so that a run that is continued goes on as if it had not stopped.

Shapes: B rows of all ranks, Dt and Ds widths.

What the losses between embeddings share: unit rows, and refusals of what cannot be compared.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import DistillError


class DistillationLoss(nn.Module):
    """The interface of a baseline; memories that follow the steps override `after_step`."""

    def forward(
        self, teacher: Tensor, student: Tensor, index: Tensor, label: Tensor
    ) -> Tensor | None:
        """Return the loss of a batch.

        Args:
            teacher: (B, Dt) float, without gradient, of any scale; (B, 0) for a method that does
                not look at the teacher in training.
            student: (B, Ds) float, of any scale.
            index: (B,) int64, positions of the images in the full training set, each once.
            label: (B,) int64, -1 without labels.

        Returns:
            0-d, the loss of all B rows, float32 (float64 for such embeddings); None while there is
            nothing to learn from.

        Raises:
            DistillError: Embeddings that do not fit each other.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Let memories take in the batch of the last `forward`, once the optimizer has moved."""

    def metrics(self) -> dict[str, float]:
        """Return further numbers for the log."""
        return {}


def unit_rows(embeddings: Tensor) -> Tensor:
    """L2-normalize the rows, in float32 or wider; rows of zeros stay."""
    return F.normalize(embeddings.to(torch.promote_types(torch.float32, embeddings.dtype)))


def check_rows(teacher: Tensor, student: Tensor) -> None:
    """Refuse embeddings that are not of the same images.

    Args:
        teacher: (B, Dt).
        student: (B, Ds).

    Raises:
        DistillError: One is no matrix, or their numbers of rows differ.
    """
    for name, rows in (("teacher", teacher), ("student", student)):
        if rows.ndim != 2:
            raise DistillError(f"{name} has shape {tuple(rows.shape)}; it must be a matrix, B x D")
    if len(teacher) != len(student):
        raise DistillError(
            f"teacher has {len(teacher)} rows and student {len(student)}; both must be of the same "
            "images"
        )


def check_counts(**counts: int) -> None:
    """Refuse widths and numbers of things below 1, naming them.

    Raises:
        DistillError: One of them is.
    """
    for name, count in counts.items():
        if count < 1:
            raise DistillError(f"{name} is {count}; it must be at least 1")


def check_weights(**weights: float) -> None:
    """Refuse weights that are negative or not finite, naming them.

    Raises:
        DistillError: One of them is.
    """
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise DistillError(f"{name} is {weight}; it must be at least 0 and finite")
