"""The teacher as the objective sees it: something that gives an embedding for every image.

Whether that is a network that runs at every step or a table that was filled once, the objective
does not learn.

The teacher's embeddings without what all of them share.

Embeddings of a network with a last ReLU or a bias lie in a cone: any two images are similar, and
most of a similarity says nothing about the image. Taken from their mean direction, the same
temperature tells neighbors apart that were told apart only by a temperature so low that one
neighbor takes all. Centring a teacher's output is DINO's (Caron et al., ICCV 2021, section 3.1),
there by a running mean; here the teacher is frozen and its mean is known before the first step.

Shapes: N images, B rows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.data.loader import Batch
from distill.device import autocast, images_per_pass
from distill.models.networks import EmbeddingNetwork


class Teacher(Protocol):
    """Gives the teacher's embeddings (B, D) of a batch, float32, without gradient."""

    embedding_dim: int

    def __call__(self, batch: Batch) -> Tensor:
        """Embed the images of `batch`."""
        ...


class Rows(Protocol):
    """Embeddings of one view of every training image, by index."""

    @property
    def embedding_dim(self) -> int:
        """D."""
        ...

    def rows(self, index: np.ndarray) -> Tensor:
        """Return the embeddings (B, D) float32 on the CPU of the images `index`, int64 (B,)."""
        ...


class CachedTeacher:
    """Looks up what the teacher made of its own views of the images.

    With V views, image i is seen in epoch e through view (e + i) mod V: every epoch has all views,
    and an image has each of them in V epochs.

    Args:
        views: The embeddings of each view, all of one width.
        device: Where the rows of a batch are wanted.
    """

    def __init__(self, views: Sequence[Rows], device: torch.device) -> None:
        self.views = views
        self.device = device
        self.embedding_dim = views[0].embedding_dim

    def __call__(self, batch: Batch) -> Tensor:
        """Return the rows of the batch's images."""
        index = batch.index.numpy()
        if len(self.views) == 1:
            return self.views[0].rows(index).to(self.device, non_blocking=True)
        which = (batch.epoch + index) % len(self.views)
        rows = torch.empty(len(index), self.embedding_dim)
        for number, view in enumerate(self.views):
            chosen = np.flatnonzero(which == number)
            rows[torch.from_numpy(chosen)] = view.rows(index[chosen])
        return rows.to(self.device, non_blocking=True)


class OnlineTeacher:
    """Runs the frozen network on its own view or, without one, on the student's.

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
        self.embedding_dim = network.embedding_dim

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Embed the teacher's view of the batch."""
        if len(batch.index) == 0:  # such views have no size
            return torch.empty(0, self.embedding_dim, device=self.device)
        views = batch.view if batch.second_view is None else batch.second_view
        batch_size = self.batch_size or images_per_pass(views.shape[-1], self.device)
        with autocast(self.device, self.precision):
            parts = [self.network(part.to(self.device)) for part in views.split(batch_size)]
        return torch.cat(parts)


MAX_ROWS = 65_536  # more would not move a mean of unit vectors by 1 % of its length
_CHUNK = 4096


class CenteredRows:
    """Rows as unit vectors less a mean.

    Args:
        rows: The embeddings as they are kept.
        mean: (D,) float32.
    """

    def __init__(self, rows: Rows, mean: Tensor) -> None:
        self._rows = rows
        self.mean = mean
        self.embedding_dim = rows.embedding_dim

    def rows(self, index: np.ndarray) -> Tensor:
        """Return u_i - mean of the images `index`, u_i their unit embeddings: (B, D) float32."""
        return F.normalize(self._rows.rows(index), dim=1) - self.mean


def mean_direction(rows: Rows, images: np.ndarray, *, seed: int) -> Tensor:
    """Return the mean of unit embeddings, (D,) float32: the same whatever the number of threads.

    Args:
        rows: Their embeddings.
        images: int64 (N,), N at least 1; of more than `MAX_ROWS` a sample is taken.
        seed: Of the sample.
    """
    if len(images) > MAX_ROWS:
        images = np.random.default_rng(seed).choice(images, MAX_ROWS, replace=False)
    total = np.zeros(rows.embedding_dim)
    for start in range(0, len(images), _CHUNK):
        units = F.normalize(rows.rows(np.sort(images[start : start + _CHUNK])), dim=1)
        total += units.numpy().sum(axis=0, dtype=np.float64)
    return torch.from_numpy((total / len(images)).astype(np.float32))
