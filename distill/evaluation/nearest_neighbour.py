"""Nearest-neighbour accuracy: an image is of the class that its neighbours are of.

Protocol (CompRess, NeurIPS 2020): L2-normalized embeddings, k = 1, exact search over the training
set. For larger k the neighbours vote, each with one voice or weighted by exp(similarity / 0.07)
(Wu et al., CVPR 2018). Search is FAISS's exact inner product, on the GPU when FAISS sees one, or
through inverted lists, which is faster and may miss neighbours.

Shapes: N indexed images, M queries, D width, k neighbours, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from distill.evaluation.inverted_lists import InvertedLists
from distill.evaluation.nn_scores import NearestNeighbourScores
from distill.evaluation.requirements import (
    require_ks,
    require_labels,
    require_same_width,
    require_splits,
)
from distill.evaluation.row_blocks import Rows, l2_normalized
from distill.evaluation.search import exact_index, gpu_is_seen, nearest_neighbours

__all__ = [
    "VOTE_TEMPERATURE",
    "Vote",
    "exact_index",
    "gpu_is_seen",
    "l2_normalized",
    "nearest_neighbours",
    "nn_accuracy",
    "nn_scores",
    "predict",
    "require_labels",
    "require_same_width",
]

Vote = Literal["majority", "weighted"]
VOTE_TEMPERATURE = 0.07


def nn_accuracy(
    train_features: Rows,
    train_labels: np.ndarray,
    val_features: Rows,
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
        val_labels: (M,) classes, at least 0.
        k: Neighbours that vote, from 1 to N.
        vote: One voice each, or weighted by similarity.

    Raises:
        DistillError: See `nn_scores`.
    """
    scores = nn_scores(train_features, train_labels, val_features, val_labels, ks=(k,), vote=vote)
    return scores.accuracy(k)


def nn_scores(
    train_features: Rows,
    train_labels: np.ndarray,
    val_features: Rows,
    val_labels: np.ndarray,
    *,
    ks: Sequence[int] = (1,),
    vote: Vote = "majority",
    ivf: InvertedLists | None = None,
) -> NearestNeighbourScores:
    """Predict the class of every query for several k, from one search for the largest.

    Args:
        train_features: (N, D), any scale; read in blocks.
        train_labels: (N,) classes, at least 0.
        val_features: (M, D), any scale; read in blocks.
        val_labels: (M,) classes, at least 0.
        ks: Numbers of neighbours that vote, each from 1 to N.
        vote: One voice each, or weighted by similarity.
        ivf: How to search approximately; None: exact.

    Returns:
        Predictions and what follows from them, with the recall of an approximate search.

    Raises:
        DistillError: Labels that are missing, of one class or not one per embedding; no k or one
            outside 1..N; embeddings that are not finite or of different widths.
    """
    require_splits(train_features, train_labels, val_features, val_labels)
    require_ks(ks, most=len(train_features))
    k = max(ks)
    if ivf is None:
        neighbours, similarities = nearest_neighbours(train_features, val_features, k=k)
        recall = None
    else:
        neighbours, similarities, recall = ivf.search(train_features, val_features, k=k)
    voters = train_labels[neighbours]
    predicted = {k: predict(voters[:, :k], similarities[:, :k], vote=vote) for k in sorted(set(ks))}
    return NearestNeighbourScores(val_labels, predicted, recall=recall)


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
