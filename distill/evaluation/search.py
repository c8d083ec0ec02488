"""Exact nearest-neighbour search whose memory does not grow with the number of images.

Queries and indexed embeddings are read in blocks, and the best k so far of every query are kept:
the result is that of one search over everything. The index is read once for every block of
queries. FAISS compares, on the GPU when it sees one.

Shapes: N indexed images, M queries, D width, k neighbours.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from distill.evaluation.requirements import require_k, require_same_width
from distill.evaluation.row_blocks import BLOCK_BYTES, Rows, l2_normalized, normalized_blocks

Metric = Literal["inner product", "euclidean"]
_MAX_GPU_NEIGHBOURS = 2048  # FAISS's limit


def nearest_neighbours(
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
    """
    require_k(k, most=len(indexed))
    require_same_width(indexed, queries)
    neighbours = np.empty((len(queries), k), np.int64)
    similarities = np.empty((len(queries), k), np.float32)
    for start, block in normalized_blocks(queries, block_bytes):
        rows = slice(start, start + len(block))
        neighbours[rows], similarities[rows] = nearest_rows(
            indexed, block, k=k, block_bytes=block_bytes
        )
    return neighbours, similarities


def nearest_rows(
    indexed: Rows, queries: np.ndarray, *, k: int, block_bytes: int = BLOCK_BYTES
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest rows of `indexed` for queries that are unit rows float32 in memory."""
    index = empty_index(queries.shape[1], metric="inner product", k=k)
    best = nothing_found(len(queries))
    for start, block in normalized_blocks(indexed, block_bytes):
        best = merged(best, found_in(index, block, start + np.arange(len(block)), queries, k), k)
    return best


def nearest_others(
    indexed: Rows, images: np.ndarray, *, k: int, block_bytes: int = BLOCK_BYTES
) -> np.ndarray:
    """Find the k nearest rows for some of the rows themselves, which do not count as their own.

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
    neighbours, _ = nearest_rows(
        indexed, l2_normalized(indexed[images]), k=k + 1, block_bytes=block_bytes
    )
    is_self = neighbours == images[:, None]
    # Among more than k images of the same embedding the image itself may be missing.
    is_self[~is_self.any(axis=1), k] = True
    return neighbours[~is_self].reshape(len(images), k)


def found_in(
    index: Any, block: np.ndarray, numbers: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Search one block; return the numbers of at most k rows and their similarities."""
    index.reset()
    index.add(block)
    similarities, places = index.search(queries, min(k, len(block)))
    return numbers[places], similarities


def nothing_found(num_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what `merged` starts from."""
    return np.empty((num_queries, 0), np.int64), np.empty((num_queries, 0), np.float32)


def merged(
    best: tuple[np.ndarray, np.ndarray], more: tuple[np.ndarray, np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k most similar of both, nearest first; on a draw what was found first."""
    neighbours, similarities = (np.hstack(pair) for pair in zip(best, more, strict=True))
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(neighbours, order, 1), np.take_along_axis(similarities, order, 1)


def num_shared(first: np.ndarray, second: np.ndarray) -> int:
    """Count what the same rows of two arrays have in common.

    Args:
        first: (B, k) integers, no number twice in a row.
        second: (B, k), likewise.
    """
    both = np.sort(np.hstack([first, second]), axis=1)
    return int((both[:, 1:] == both[:, :-1]).sum())


def exact_index(features: np.ndarray, *, metric: Metric) -> Any:
    """Return FAISS's exact index of float32 rows (N, D), on the GPU when FAISS sees one."""
    index = empty_index(features.shape[1], metric=metric)
    index.add(features)
    return index


def empty_index(width: int, *, metric: Metric, k: int = 1) -> Any:
    """Return FAISS's exact index of nothing yet, on the GPU when that can find k."""
    import faiss

    flat = faiss.IndexFlatIP if metric == "inner product" else faiss.IndexFlatL2
    index: Any = flat(width)
    if gpu_is_seen() and k <= _MAX_GPU_NEIGHBOURS:
        index = faiss.index_cpu_to_all_gpus(index)
    return index


def gpu_is_seen() -> bool:
    """Say whether FAISS was built for GPUs and sees one."""
    import faiss

    return hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus() > 0
