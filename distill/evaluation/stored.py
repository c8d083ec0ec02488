"""Embeddings that lie on the disk, with their labels, for evaluations that read a block at a time.

Shapes: N images, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.data.images import Images
from distill.embedding_cache import EmbeddingTable, SelectedRows
from distill.evaluation.embed import Embeddings


@dataclass(frozen=True)
class StoredEmbeddings:
    """Embeddings of the images at `index`, in that order.

    Attributes:
        features: (N, D), read as float32 when they are asked for.
        labels: (N,) int64, -1 where an image has none.
        index: (N,) int64, the image's place in its set; images that could not be read are absent.
    """

    features: SelectedRows
    labels: np.ndarray
    index: np.ndarray

    def in_memory(self) -> Embeddings:
        """Read all of them."""
        return Embeddings(self.features[:], self.labels, self.index, ())


def stored(table: EmbeddingTable, images: Images, index: np.ndarray) -> StoredEmbeddings:
    """Return the embeddings of some images, without those that could not be read.

    Args:
        table: Of all images of the set.
        images: The set.
        index: int64, which of them.
    """
    readable = np.setdiff1d(index, table.bad)
    labels = np.full(len(readable), -1) if images.labels is None else images.labels[readable]
    return StoredEmbeddings(SelectedRows(table, readable), labels, readable)
