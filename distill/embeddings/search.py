"""Exact nearest-neighbor search in constant memory, and checks that evaluations share.

Queries and indexed embeddings are read in blocks of rows, so that embeddings on disk need not fit
into memory, and the best k so far are kept for every query: the result is that of one search over
all rows. The indexed rows are read once for every block of queries. Search is by FAISS, on the GPU
where FAISS has one.

Limit: block sizes are in bytes as float32; FAISS needs some megabytes more while it compares two
blocks.

Shapes: N indexed images, M queries, D width, k neighbors, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from distill.errors import DistillError

BLOCK_BYTES = 2**28  # of a block as float32: 16,384 rows of 4,096
Metric = Literal["inner product", "euclidean"]
_MAX_SEED = 2**31 - 1  # FAISS keeps seeds in a C int
_MAX_GPU_NEIGHBORS = 2048  # FAISS's limit
_NORM_ROWS = 1024  # norms are computed for so many rows at a time


class Rows(Protocol):
    """Embeddings (N, D) of any float dtype: an array, a memory map, or an object indexed alike."""

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
    """Yield L2-normalized embeddings in blocks, in order.

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
    """Return a copy with rows of unit norm, float32; rows of zeros stay.

    Args:
        features: (N, D), any float dtype.
        what: Name of the rows, for the error.

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


def nearest_neighbors(
    indexed: Rows, queries: Rows, *, k: int, block_bytes: int = BLOCK_BYTES
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest rows of `indexed` for every query, by cosine similarity, nearest first.

    Args:
        indexed: (N, D), any scale; arrays or memory maps.
        queries: (M, D), any scale.
        k: From 1 to N.
        block_bytes: Of a block of queries and of one of indexed rows as float32; besides the
            result, some four times as many bytes are in use at the peak.

    Returns:
        Row numbers (M, k) int64 and similarities (M, k) float32.

    Raises:
        DistillError: k outside 1..N, or embeddings that are not finite or of different widths.

    Example:
        >>> neighbors, similarities = nearest_neighbors(np.eye(3), np.eye(3)[1:], k=1)
        >>> neighbors.tolist(), similarities.tolist()
        ([[1], [2]], [[1.0], [1.0]])
    """
    require_k(k, most=len(indexed))
    require_same_width(indexed, queries)
    neighbors = np.empty((len(queries), k), np.int64)
    similarities = np.empty((len(queries), k), np.float32)
    for start, block in normalized_blocks(queries, block_bytes):
        rows = slice(start, start + len(block))
        neighbors[rows], similarities[rows] = nearest_rows(
            indexed, block, k=k, block_bytes=block_bytes
        )
    return neighbors, similarities


def nearest_rows(
    indexed: Rows, queries: np.ndarray, *, k: int, block_bytes: int = BLOCK_BYTES
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest rows for L2-normalized queries (M, D), float32 in memory.

    Of equally near rows in different blocks the first ones are taken.
    """
    index = empty_index(queries.shape[1], metric="inner product", k=k)
    neighbors = np.empty((len(queries), 0), np.int64)
    similarities = np.empty((len(queries), 0), np.float32)
    for start, block in normalized_blocks(indexed, block_bytes):
        index.reset()
        index.add(block)
        found, rows = index.search(queries, min(k, len(block)))
        neighbors = np.hstack([neighbors, start + rows])
        similarities = np.hstack([similarities, found])
        best = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        neighbors = np.take_along_axis(neighbors, best, 1)
        similarities = np.take_along_axis(similarities, best, 1)
    return neighbors, similarities


def nearest_others(
    indexed: Rows, images: np.ndarray, *, k: int, block_bytes: int = BLOCK_BYTES
) -> np.ndarray:
    """Find the k nearest other rows for some of the rows.

    Args:
        indexed: (N, D), any scale.
        images: (B,) row numbers; their embeddings are held in memory.
        k: From 1 to N - 1.
        block_bytes: Of a block of indexed rows as float32.

    Returns:
        Row numbers (B, k) int64, nearest first.

    Raises:
        DistillError: Embeddings that are not finite.
    """
    neighbors, _ = nearest_rows(
        indexed, l2_normalized(indexed[images]), k=k + 1, block_bytes=block_bytes
    )
    is_self = neighbors == images[:, None]
    # Among more than k images of the same embedding the image itself may be missing.
    is_self[~is_self.any(axis=1), k] = True
    return neighbors[~is_self].reshape(len(images), k)


def num_shared(first: np.ndarray, second: np.ndarray) -> int:
    """Count the numbers that corresponding rows of two arrays share.

    Args:
        first: (B, k) integers, no number twice in a row.
        second: (B, k), likewise.
    """
    both = np.sort(np.hstack([first, second]), axis=1)
    return int((both[:, 1:] == both[:, :-1]).sum())


def exact_index(features: np.ndarray, *, metric: Metric) -> Any:
    """Return FAISS's exact index of float32 rows (N, D), on the GPU where FAISS has one."""
    index = empty_index(features.shape[1], metric=metric)
    index.add(features)
    return index


def empty_index(width: int, *, metric: Metric, k: int = 1) -> Any:
    """Return an empty exact index of FAISS, on the GPU where FAISS has one and it supports k."""
    import faiss

    flat = faiss.IndexFlatIP if metric == "inner product" else faiss.IndexFlatL2
    index: Any = flat(width)
    if gpu_is_seen() and k <= _MAX_GPU_NEIGHBORS:
        index = faiss.index_cpu_to_all_gpus(index)
    return index


def gpu_is_seen() -> bool:
    """Return whether FAISS was built for GPUs and finds one."""
    import faiss

    return hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus() > 0


def require_labels(labels: np.ndarray | None, *, what: str, min_classes: int = 2) -> None:
    """Refuse labels on which no accuracy can be measured.

    Raises:
        DistillError: No labels, some missing (-1), or fewer classes than `min_classes`.
    """
    num_missing = 0 if labels is None else int((labels < 0).sum())
    if labels is None or num_missing == len(labels):
        raise DistillError(
            f"{what} have no labels, which an accuracy needs; put them into one folder per class "
            "under train/ and val/"
        )
    if num_missing:
        raise DistillError(
            f"{num_missing} of {len(labels)} labels of {what} are missing, an accuracy needs all; "
            "put every image into the folder of its class or leave it out"
        )
    num_classes = len(np.unique(labels))
    if num_classes < min_classes:
        raise DistillError(
            f"{what} are of {num_classes} class, an accuracy needs {min_classes} or more; add a "
            "folder per class"
        )


def require_same_width(train_features: Rows, val_features: Rows) -> None:
    """Refuse embeddings of different widths.

    Raises:
        DistillError: When their widths differ.
    """
    widths = [features.shape[1] for features in (train_features, val_features)]
    if widths[0] != widths[1]:
        raise DistillError(
            f"the training embeddings are {widths[0]} wide and the validation embeddings "
            f"{widths[1]}; embed both with the same network"
        )


def require_splits(
    train_features: Rows, train_labels: np.ndarray, val_features: Rows, val_labels: np.ndarray
) -> None:
    """Refuse training and validation embeddings on which no accuracy can be measured.

    Raises:
        DistillError: Labels that are missing, of one class in training or not one per embedding;
            embeddings of different widths.
    """
    for features, labels, what, least in (
        (train_features, train_labels, "the training images", 2),
        (val_features, val_labels, "the validation images", 1),
    ):
        require_labels(labels, what=what, min_classes=least)
        if len(features) != len(labels):
            raise DistillError(
                f"there are {len(features)} embeddings and {len(labels)} labels of {what}, an "
                "accuracy needs one label for each; take both from the same pass over the same "
                "images"
            )
    require_same_width(train_features, val_features)


def require_seed(seed: int) -> None:
    """Refuse a seed out of the range of FAISS and NumPy.

    Raises:
        DistillError: Outside 0..2^31 - 1.
    """
    if not 0 <= seed <= _MAX_SEED:
        raise DistillError(f"the seed is {seed}, it must be between 0 and {_MAX_SEED}")


def require_ks(ks: Sequence[int], *, most: int, what: str = "the number of indexed images") -> None:
    """Refuse an empty list of k, or a k out of range.

    Raises:
        DistillError: No k, or one outside 1..`most`.
    """
    if len(ks) == 0:
        raise DistillError(f"no k was given, name one or more between 1 and {what}, {most}")
    for k in ks:
        require_k(k, most=most, what=what)


def require_k(k: int, *, most: int, what: str = "the number of indexed images") -> None:
    """Refuse a k out of range.

    Raises:
        DistillError: k outside 1..`most`.
    """
    if not 1 <= k <= most:
        raise DistillError(f"k is {k}, it must be between 1 and {what}, {most}")
