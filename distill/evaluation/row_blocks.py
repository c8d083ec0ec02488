"""Reads embeddings a block of rows at a time, so that what lies on a disk need not fit into memory.

Deliberate limit: a block is as many rows as fit into a number of bytes as float32; what FAISS takes
for itself while it compares two blocks comes on top (some megabytes).

Shapes: N images, D width, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from distill.errors import DistillError

BLOCK_BYTES = 2**28  # of a block as float32: 16,384 rows of 4,096
_NORM_ROWS = 1024  # squares of so many rows at a time are held


class Rows(Protocol):
    """Embeddings (N, D) of any float dtype: an array, a memory map, or what slices like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        ...

    def __len__(self) -> int:
        """N."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """Return the rows of a slice or of an array of row numbers, in that order."""
        ...


def rows_per_block(width: int, block_bytes: int = BLOCK_BYTES) -> int:
    """Return how many float32 rows of a width take `block_bytes`; at least 1."""
    return max(1, block_bytes // (4 * max(1, width)))


def normalized_blocks(
    features: Rows, block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[int, np.ndarray]]:
    """Go over embeddings in order.

    Args:
        features: (N, D), any scale.
        block_bytes: Of a block as float32, in bytes.

    Yields:
        The number of the first row and the rows (B, D) float32 of unit norm.

    Raises:
        DistillError: Embeddings that are not finite.
    """
    size = rows_per_block(features.shape[1], block_bytes)
    for start in range(0, len(features), size):
        block = features[start : start + size]
        what = "embeddings"
        if len(features) > size:
            what = f"embeddings from row {start} on"
        yield start, l2_normalized(block, what=what)


def l2_normalized(features: Any, *, what: str = "embeddings") -> np.ndarray:
    """Scale rows to unit norm, float32, in memory of their own; rows of zeros stay.

    Args:
        features: (N, D), any float dtype.
        what: Names the rows when they are refused.

    Raises:
        DistillError: When a row is not finite.
    """
    rows = np.array(features, dtype=np.float32, order="C")
    norms = np.empty((len(rows), 1), np.float32)
    for start in range(0, len(rows), _NORM_ROWS):
        part = slice(start, start + _NORM_ROWS)
        norms[part] = np.linalg.norm(rows[part], axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        broken = int((~np.isfinite(norms)).sum())
        raise DistillError(
            f"{broken} of {len(rows)} {what} are not finite; the network's weights are "
            "damaged or its training diverged"
        )
    rows /= np.maximum(norms, 1e-12)
    return rows
