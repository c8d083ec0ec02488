"""Cluster alignment: do the clusters that embeddings fall into agree with classes?

Protocol (CompRess, NeurIPS 2020): k-means on the L2-normalized training embeddings, as many
clusters as classes (`distill.evaluation.kmeans`); every image belongs to its nearest centroid. A
cluster and a class score |cluster and class| / |cluster|, and the one-to-one mapping with the
largest sum of scores is found by the Hungarian algorithm on the training images. The number is the
accuracy of that mapping on the validation images. Scores by count, |cluster and class|, are an
option: they find the mapping that is right for most training images.

Shapes: N training images, M validation images, D width, K clusters, C classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from distill.evaluation.alignment import Alignment
from distill.evaluation.cluster_agreement import cluster_agreement, contingency
from distill.evaluation.kmeans import (
    NUM_ITERATIONS,
    NUM_RESTARTS,
    Clustering,
    kmeans,
    nearest_centroids,
    require_clusters,
)
from distill.evaluation.requirements import require_labels, require_splits
from distill.evaluation.row_blocks import Rows

__all__ = [
    "NUM_ITERATIONS",
    "NUM_RESTARTS",
    "Matching",
    "align",
    "align_clusters",
    "alignment_accuracy",
    "cluster_alignment",
    "contingency",
    "kmeans",
    "match_clusters",
    "nearest_centroids",
    "require_clusters",
]

Matching = Literal["purity", "count"]


def cluster_alignment(
    train_features: Rows,
    train_labels: np.ndarray,
    val_features: Rows,
    val_labels: np.ndarray,
    *,
    num_clusters: int | None = None,
    seed: int = 0,
    restarts: int = NUM_RESTARTS,
) -> float:
    """Return the share of validation images whose class is the one that their cluster stands for.

    Args:
        train_features: (N, D), any scale.
        train_labels: (N,) classes, at least 0.
        val_features: (M, D), any scale.
        val_labels: (M,) classes, at least 0.
        num_clusters: From 1 to N; None: as many as there are classes among the training images.
        seed: Picks the first centroids; from 0 to 2^31 - 1.
        restarts: Of k-means, see `kmeans`; 1 as published.

    Raises:
        DistillError: See `align_clusters`.
    """
    clustering = Clustering(num_clusters, seed=seed, restarts=restarts)
    return align_clusters(
        train_features, train_labels, val_features, val_labels, clustering=clustering
    ).accuracy


def align_clusters(
    train_features: Rows,
    train_labels: np.ndarray,
    val_features: Rows,
    val_labels: np.ndarray,
    *,
    clustering: Clustering | None = None,
    matching: Matching = "purity",
) -> Alignment:
    """Cluster the training embeddings, map clusters to classes, and score the validation images.

    Args:
        train_features: (N, D), any scale; read in blocks when `clustering.minibatch` is set.
        train_labels: (N,) classes, at least 0, gaps allowed.
        val_features: (M, D), any scale.
        val_labels: (M,) classes, at least 0.
        clustering: How k-means runs; None: as published, started ten times.
        matching: What a cluster and a class score, see `match_clusters`.

    Raises:
        DistillError: Labels that are missing, of one class or not one per embedding; embeddings of
            different widths or not finite; numbers that k-means cannot do (`kmeans`).
    """
    require_splits(train_features, train_labels, val_features, val_labels)
    clustering = clustering or Clustering()
    centroids = clustering.centroids(train_features, num_classes=len(np.unique(train_labels)))
    return align(
        nearest_centroids(train_features, centroids),
        train_labels,
        nearest_centroids(val_features, centroids),
        val_labels,
        num_clusters=len(centroids),
        matching=matching,
    )


def align(
    train_clusters: np.ndarray,
    train_labels: np.ndarray,
    val_clusters: np.ndarray,
    val_labels: np.ndarray,
    *,
    num_clusters: int,
    matching: Matching = "purity",
) -> Alignment:
    """Do everything that comes after k-means.

    Args:
        train_clusters: (N,) of every training image, 0..K-1.
        train_labels: (N,) classes, at least 0, gaps allowed.
        val_clusters: (M,) of every validation image, 0..K-1.
        val_labels: (M,) classes, at least 0; others than in training are never right.
        num_clusters: K.
        matching: What a cluster and a class score, see `match_clusters`.

    Raises:
        DistillError: Labels that are missing, of one class or not one per image.
    """
    require_labels(train_labels, what="the training images")
    require_labels(val_labels, what="the validation images", min_classes=1)
    classes, train_columns = np.unique(train_labels, return_inverse=True)
    val_classes, val_columns = np.unique(val_labels, return_inverse=True)
    table = contingency(train_clusters, train_columns, num_clusters, len(classes))
    val_table = contingency(val_clusters, val_columns, num_clusters, len(val_classes))
    columns = match_clusters(table, matching=matching)
    mapping = np.where(columns >= 0, classes[columns], -1)
    return Alignment(
        accuracy=alignment_accuracy(mapping, val_clusters, val_labels),
        train_accuracy=alignment_accuracy(mapping, train_clusters, train_labels),
        mapping=mapping,
        classes=classes,
        contingency=table,
        val_sizes=val_table.sum(axis=1),
        train=cluster_agreement(table),
        val=cluster_agreement(val_table),
    )


def match_clusters(contingency: np.ndarray, *, matching: Matching = "purity") -> np.ndarray:
    """Map clusters to classes one to one, so that the sum of scores is the largest.

    Args:
        contingency: (K, C) counts.
        matching: `purity`: a cluster and a class score |cluster and class| / |cluster|, as
            published; an empty cluster scores 0. `count`: they score |cluster and class|.

    Returns:
        The class of every cluster (K,) int64; -1 where classes did not suffice.
    """
    from scipy.optimize import linear_sum_assignment

    assert matching in ("purity", "count"), matching
    sizes = contingency.sum(axis=1, keepdims=True)
    scores = contingency / np.maximum(sizes, 1) if matching == "purity" else contingency
    clusters, classes = linear_sum_assignment(scores, maximize=True)
    mapping = np.full(len(contingency), -1, dtype=np.int64)
    mapping[clusters] = classes
    return mapping


def alignment_accuracy(mapping: np.ndarray, assignment: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images whose class is that of their cluster; -1 is nobody's class.

    Args:
        mapping: (K,) the class of every cluster, -1 for none.
        assignment: (M,) clusters, 0..K-1.
        labels: (M,) classes, at least 0.
    """
    return float(np.mean(mapping[assignment] == labels))
