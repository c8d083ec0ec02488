"""Nearest-neighbour accuracy: an image is of the class that its neighbours are of.

Protocol (CompRess, NeurIPS 2020): L2-normalized embeddings, k = 1, exact search over the training
set. For larger k the neighbours vote, each with one voice or weighted by exp(similarity / 0.07)
(Wu et al., CVPR 2018). Search is FAISS's exact inner product, on the GPU when FAISS sees one.

Shapes: N indexed images, M queries, D width, k neighbours, C classes.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from distill.errors import DistillError

Vote = Literal["majority", "weighted"]
VOTE_TEMPERATURE = 0.07


def nn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    val_features: np.ndarray,
    val_labels: np.ndarray,
    *,
    k: int = 1,
    vote: Vote = "majority",
) -> float:
    """Return the share of queries whose class the k nearest training images give.

    Args:
        train_features: (N, D), any scale.
        train_labels: (N,) classes, at least 0.
        val_features: (M, D), any scale.
        val_labels: (M,) classes.
        k: Neighbours that vote, from 1 to N.
        vote: One voice each, or weighted by similarity.

    Raises:
        DistillError: See `require_labels`; k outside 1..N; embeddings that are not finite or of
            different widths.
    """
    require_labels(train_labels, what="the training images")
    require_labels(val_labels, what="the validation images", min_classes=1)
    neighbours, similarities = nearest_neighbours(train_features, val_features, k=k)
    predicted = predict(train_labels[neighbours], similarities, vote=vote)
    return float(np.mean(predicted == val_labels))


def nearest_neighbours(
    indexed: np.ndarray, queries: np.ndarray, *, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest rows of `indexed` for every query, by cosine similarity, nearest first.

    Returns:
        Row numbers (M, k) int64 and similarities (M, k) float32.

    Raises:
        DistillError: k outside 1..N, or embeddings that are not finite or of different widths.
    """
    if not 1 <= k <= len(indexed):
        raise DistillError(
            f"k is {k}, it must be between 1 and the number of indexed images, {len(indexed)}"
        )
    require_same_width(indexed, queries)
    indexed, queries = l2_normalized(indexed), l2_normalized(queries)
    similarities, neighbours = exact_index(indexed, metric="inner product").search(queries, k)
    return neighbours, similarities


def predict(neighbour_labels: np.ndarray, similarities: np.ndarray, *, vote: Vote) -> np.ndarray:
    """Return the winning class of every row; a draw goes to the class that is nearer.

    Args:
        neighbour_labels: (M, k) classes, nearest first.
        similarities: (M, k) cosine similarities.
        vote: One voice each, or weighted by similarity.
    """
    weights = np.ones_like(similarities, dtype=np.float64)
    if vote == "weighted":
        nearest = similarities[:, :1].astype(np.float64)  # subtracted, so that exp cannot overflow
        weights = np.exp((similarities - nearest) / VOTE_TEMPERATURE)
    votes = np.zeros_like(weights)
    for j in range(neighbour_labels.shape[1]):  # M x k at a time: k x k voices a row would not fit
        votes += weights[:, j : j + 1] * (neighbour_labels == neighbour_labels[:, j : j + 1])
    # Summation order makes equal votes differ in the last digit; rounding keeps them equal.
    winner = np.argmax(np.round(votes, 9), axis=1)
    return neighbour_labels[np.arange(len(winner)), winner]


def require_labels(labels: np.ndarray | None, *, what: str, min_classes: int = 2) -> None:
    """Refuse labels that an accuracy would mean nothing with.

    Raises:
        DistillError: No labels, or fewer classes than `min_classes`.
    """
    if labels is None or len(labels) == 0 or labels.min() < 0:
        raise DistillError(
            f"{what} have no labels, which an accuracy needs; put them into one folder per class "
            "under train/ and val/"
        )
    num_classes = len(np.unique(labels))
    if num_classes < min_classes:
        raise DistillError(
            f"{what} are of {num_classes} class, an accuracy needs {min_classes} or more; add a "
            "folder per class"
        )


def require_same_width(train_features: np.ndarray, val_features: np.ndarray) -> None:
    """Refuse embeddings that cannot be compared with each other.

    Raises:
        DistillError: When their widths differ.
    """
    widths = [features.shape[1] for features in (train_features, val_features)]
    if widths[0] != widths[1]:
        raise DistillError(
            f"the training embeddings are {widths[0]} wide and the validation embeddings "
            f"{widths[1]}; embed both with the same network"
        )


def l2_normalized(features: np.ndarray) -> np.ndarray:
    """Scale rows to unit norm, float32; rows of zeros stay.

    Raises:
        DistillError: When a row is not finite.
    """
    features = np.ascontiguousarray(features, dtype=np.float32)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        rows = int((~np.isfinite(norms)).sum())
        raise DistillError(
            f"{rows} of {len(features)} embeddings are not finite; the network's weights are "
            "damaged or its training diverged"
        )
    return features / np.maximum(norms, 1e-12)


def exact_index(features: np.ndarray, *, metric: Literal["inner product", "euclidean"]) -> Any:
    """Return FAISS's exact index of float32 rows (N, D), on the GPU when FAISS sees one."""
    import faiss

    flat = faiss.IndexFlatIP if metric == "inner product" else faiss.IndexFlatL2
    index: Any = flat(features.shape[1])
    if gpu_is_seen():
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(features)
    return index


def gpu_is_seen() -> bool:
    """Say whether FAISS was built for GPUs and sees one."""
    import faiss

    return hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus() > 0
