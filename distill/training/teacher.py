"""The teacher as the objective sees it: something that gives an embedding for every image.

Whether that is a network that runs at every step or a table that was filled once, the objective
does not learn.

Shapes: B rows, D width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from distill.data.loader import Batch
from distill.device import autocast, images_per_pass
from distill.losses.base import Rows
from distill.models.networks import EmbeddingNetwork


class Teacher(Protocol):
    """Gives the teacher's embeddings (B, D) of a batch, float32, without gradient."""

    def __call__(self, batch: Batch) -> Tensor:
        """Embed the images of `batch`."""
        ...


class CachedTeacher:
    """Looks up what the teacher made of its own view of the images.

    Args:
        rows: The embeddings.
        device: Where the rows of a batch are wanted.
    """

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self.rows = rows
        self.device = device

    def __call__(self, batch: Batch) -> Tensor:
        """Return the rows of the batch's images."""
        return self.rows.rows(batch.index.numpy()).to(self.device, non_blocking=True)


class OnlineTeacher:
    """Runs the frozen network on the student's view.

    Args:
        network: Frozen, already on `device`.
        device: Where it runs.
        precision: `fp32` or `bf16`.
        batch_size: Images per forward pass; None: by image size and device.
    """

    def __init__(
        self,
        network: EmbeddingNetwork,
        device: torch.device,
        *,
        precision: str,
        batch_size: int | None,
    ) -> None:
        self.network = network
        self.device = device
        self.precision = precision
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Embed the batch's view."""
        if len(batch.index) == 0:  # such views have no size
            return torch.empty(0, self.network.embedding_dim, device=self.device)
        batch_size = self.batch_size or images_per_pass(batch.view.shape[-1], self.device)
        with autocast(self.device, self.precision):
            parts = [self.network(part.to(self.device)) for part in batch.view.split(batch_size)]
        return torch.cat(parts)
