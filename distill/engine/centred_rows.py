"""The teacher's embeddings without what all of them share.

Embeddings of a network with a last ReLU or a bias lie in a cone: any two images are similar, and
most of a similarity says nothing about the image. Taken from their mean direction, the same
temperature tells neighbours apart that were told apart only by a temperature so low that one
neighbour takes all. Centring a teacher's output is DINO's (Caron et al., ICCV 2021, section 3.1),
there by a running mean; here the teacher is frozen and its mean is known before the first step.

Shapes: N images, B rows, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.engine.teacher import Rows

MAX_ROWS = 65_536  # more would not move a mean of unit vectors by 1 % of its length
_CHUNK = 4096


class CentredRows:
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
