"""What the losses between embeddings share: unit rows, and refusals of what cannot be compared."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.errors import DistillError


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
