"""The result of cluster alignment, which explains itself.

Shapes: K clusters, C classes of training images.

How much clusters and classes have in common, whatever their names: NMI, ARI and purity.

All three are functions of the contingency table, so that nothing is sorted or compared per image.

- Normalized mutual information: I(cluster; class) over the arithmetic mean of the two entropies,
  scikit-learn's choice (Strehl and Ghosh, JMLR 2002, take the geometric mean).
- Adjusted Rand index (Hubert and Arabie, J. Classification 1985).
- Purity: the share of images that are of the commonest class of their cluster. It grows with the
  number of clusters, to 1 when every image is one.

Shapes: N images, K clusters, C classes.

Cluster alignment: do the clusters that embeddings fall into agree with classes?

Protocol (CompRess, NeurIPS 2020): k-means on the L2-normalized training embeddings, as many
clusters as classes (`distill.evaluation.kmeans`); every image belongs to its nearest centroid. A
cluster and a class score |cluster and class| / |cluster|, and the one-to-one mapping with the
largest sum of scores is found by the Hungarian algorithm on the training images. The number is the
accuracy of that mapping on the validation images. Scores by count, |cluster and class|, are an
option: they find the mapping that is right for most training images.

Shapes: N training images, M validation images, D width, K clusters, C classes.

Measures the cluster alignment of a trained student.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill.embeddings.search import Rows, require_labels, require_splits
from distill.evaluation.base import MeasurementOptions, open_evaluation
from distill.evaluation.kmeans import (
    NUM_ITERATIONS,
    NUM_RESTARTS,
    Clustering,
    Minibatch,
    kmeans,
    nearest_centroids,
    require_clusters,
)

_NO_CLASS = (
    "stand for no class, because there are more clusters than classes; the {lost} validation "
    "images in them count as wrong"
)
_NO_CLUSTER = (
    "have no cluster, because there are fewer clusters than classes; their images count as wrong"
)
_EMPTY = "hold no training image, so that no image says what they stand for"
_FORCED = (
    "stand for a class that none of their training images is of: the mapping is one to one, and "
    "nothing better was left"
)


@dataclass(frozen=True)
class Alignment:
    """Which class every cluster stands for, fitted on training images, and how right that is.

    Attributes:
        accuracy: Share of validation images whose class is that of their cluster.
        train_accuracy: The same of the training images.
        mapping: (K,) int64, the class of every cluster, -1 for none.
        classes: (C,) int64, the classes of the columns of `contingency`, sorted.
        contingency: (K, C) int64, training images of every cluster and class.
        val_sizes: (K,) int64, validation images of every cluster.
        train: NMI, ARI and purity of the training images.
        val: Those of the validation images.
    """

    accuracy: float
    train_accuracy: float
    mapping: np.ndarray
    classes: np.ndarray
    contingency: np.ndarray
    val_sizes: np.ndarray
    train: ClusterAgreement
    val: ClusterAgreement

    @cached_property
    def sizes(self) -> np.ndarray:
        """(K,) int64, training images of every cluster."""
        return self.contingency.sum(axis=1)

    @property
    def purity(self) -> np.ndarray:
        """(K,) float64, the share of the commonest class of every cluster; 0 of an empty one."""
        return self.contingency.max(axis=1) / np.maximum(self.sizes, 1)

    @property
    def commonest(self) -> np.ndarray:
        """(K,) int64, the class that most images of every cluster are of, -1 of an empty one."""
        return np.where(self.sizes > 0, self.classes[self.contingency.argmax(axis=1)], -1)

    @property
    def matched_share(self) -> np.ndarray:
        """(K,) float64, the share of the class that every cluster stands for; 0 for none."""
        return self._of_matched_class / np.maximum(self.sizes, 1)

    @property
    def empty_clusters(self) -> np.ndarray:
        """Clusters without training images; they stand for the classes that were left over."""
        return np.flatnonzero(self.sizes == 0)

    @property
    def unmatched_clusters(self) -> np.ndarray:
        """Clusters that stand for no class, because there are more clusters than classes."""
        return np.flatnonzero(self.mapping < 0)

    @property
    def unmatched_classes(self) -> np.ndarray:
        """Classes that no cluster stands for, because there are fewer clusters than classes."""
        return np.setdiff1d(self.classes, self.mapping)

    @property
    def forced_clusters(self) -> np.ndarray:
        """Clusters that hold images, but none of the class that was left for them."""
        is_forced = (self.mapping >= 0) & (self.sizes > 0) & (self._of_matched_class == 0)
        return np.flatnonzero(is_forced)

    @property
    def _of_matched_class(self) -> np.ndarray:
        columns = np.searchsorted(self.classes, np.maximum(self.mapping, self.classes[0]))
        counts = self.contingency[np.arange(len(self.mapping)), columns]
        return np.where(self.mapping >= 0, counts, 0)

    def metrics(self) -> dict[str, float]:
        """Return the numbers by name, those of the validation images, in [0, 1]."""
        return {
            "cluster_alignment": self.accuracy,
            "cluster_nmi": self.val.nmi,
            "cluster_ari": self.val.ari,
            "cluster_purity": self.val.purity,
        }

    def notes(self) -> list[str]:
        """Return a sentence for everything that a reader of the accuracy should know."""
        lost = self.val_sizes[self.unmatched_clusters].sum()
        facts = (
            (self.unmatched_clusters, "clusters", _NO_CLASS.format(lost=lost)),
            (self.unmatched_classes, "classes", _NO_CLUSTER),
            (self.empty_clusters, "clusters", _EMPTY),
            (self.forced_clusters, "clusters", _FORCED),
        )
        total = dict(zip(("clusters", "classes"), self.contingency.shape, strict=True))
        return [
            f"{len(which)} of {total[kind]} {kind} {what}"
            for which, kind, what in facts
            if which.size
        ]


@dataclass(frozen=True)
class ClusterAgreement:
    """What clusters and classes have in common.

    Attributes:
        nmi: Normalized mutual information, in [0, 1].
        ari: Adjusted Rand index, 0 on average for clusters by chance, at most 1.
        purity: In (0, 1].
    """

    nmi: float
    ari: float
    purity: float


def contingency(
    assignment: np.ndarray, labels: np.ndarray, num_clusters: int, num_classes: int
) -> np.ndarray:
    """Count the images of every cluster and class.

    Args:
        assignment: (N,) clusters, 0..K-1.
        labels: (N,) classes, 0..C-1.
        num_clusters: K.
        num_classes: C.

    Returns:
        (K, C) int64.
    """
    assert len(assignment) == len(labels)
    assert ((assignment >= 0) & (assignment < num_clusters)).all()
    assert ((labels >= 0) & (labels < num_classes)).all()
    cells = assignment.astype(np.int64) * num_classes + labels
    counts = np.bincount(cells, minlength=num_clusters * num_classes)
    return counts.reshape(num_clusters, num_classes)


def cluster_agreement(contingency: np.ndarray) -> ClusterAgreement:
    """Measure a contingency table.

    Args:
        contingency: (K, C) counts, at least one image; clusters and classes may be empty.
    """
    purity = contingency.max(axis=1).sum() / contingency.sum()
    return ClusterAgreement(
        nmi=normalized_mutual_information(contingency),
        ari=adjusted_rand_index(contingency),
        purity=float(purity),
    )


def normalized_mutual_information(contingency: np.ndarray) -> float:
    """Return I / ((H(cluster) + H(class)) / 2); 1 where there is one cluster and one class.

    Args:
        contingency: (K, C) counts.
    """
    entropies = [_entropy(contingency.sum(axis=axis)) for axis in (0, 1)]
    if sum(entropies) == 0:
        return 1.0
    information = sum(entropies) - _entropy(contingency.ravel())
    # Differences of entropies are off by rounding: independent tables give -1e-16.
    return float(np.clip(2 * information / sum(entropies), 0, 1))


def adjusted_rand_index(contingency: np.ndarray) -> float:
    """Return (pairs together in both - expected) / (mean of pairs together in each - expected).

    Args:
        contingency: (K, C) counts.
    """
    both = _pairs(contingency)
    in_clusters, in_classes = (_pairs(contingency.sum(axis=axis)) for axis in (1, 0))
    total = _pairs(contingency.sum(keepdims=True))
    # Times 2 `total`, in whole numbers: products of pairs pass 2^63 at a million images.
    numerator = 2 * (both * total - in_clusters * in_classes)
    denominator = (in_clusters + in_classes) * total - 2 * in_clusters * in_classes
    return numerator / denominator if denominator else 1.0


def _pairs(counts: np.ndarray) -> int:
    counts = counts.astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


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


@dataclass(frozen=True)
class ClusterOptions(MeasurementOptions):
    """How `distill clusters` measures."""

    num_clusters: int | None = None
    """Clusters to look for; None: as many as there are classes."""
    matching: Matching = "purity"
    """What the mapping of clusters to classes makes largest: the sum of the clusters' purities, as
    published, or the count of images that are right."""
    restarts: int = NUM_RESTARTS
    """Times that k-means starts; the start with the least distances counts. Published: 1."""
    iterations: int = NUM_ITERATIONS
    """Of k-means."""
    spherical: bool = False
    """Scale centroids to unit norm after every iteration."""
    minibatch: int | None = None
    """Images that k-means holds at a time, for embeddings beyond memory; None: all."""
    seed: int = 0
    """Picks the images that k-means starts from."""

    def clustering(self) -> Clustering:
        """Return how k-means is to run."""
        return Clustering(
            self.num_clusters,
            seed=self.seed,
            num_iterations=self.iterations,
            restarts=self.restarts,
            spherical=self.spherical,
            minibatch=None if self.minibatch is None else Minibatch(self.minibatch),
        )


@dataclass(frozen=True)
class ClusterResult:
    """What `distill clusters` found.

    Attributes:
        metrics: What was added to metrics.json, by name.
        alignment: Which class every cluster stands for, and how right that is.
        classes: Names of the classes by label.
    """

    metrics: dict[str, Any]
    alignment: Alignment
    classes: tuple[str, ...]


def evaluate_clusters(run_or_weights: Path, options: ClusterOptions) -> ClusterResult:
    """Measure a trained student.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with
            `options.student`.
        options: How to measure.

    Returns:
        The metrics are `cluster_alignment`, `cluster_nmi`, `cluster_ari` and `cluster_purity`; what
        differs from the published protocol is added to the names: `cluster_alignment_k20` when
        there are not as many clusters as classes, `_count`, `_spherical`, `_minibatch`.

    Raises:
        DistillError: No such run, weights that do not fit, no labels, more clusters than training
            images, another number out of range.
    """
    evaluation = open_evaluation(run_or_weights, options)
    evaluator = evaluation.evaluator
    require_clusters(options.num_clusters, num_images=len(evaluator.train_index), seed=options.seed)
    train, val = evaluation.stored()
    alignment = align_clusters(
        train.features,
        train.labels,
        val.features,
        val.labels,
        clustering=options.clustering(),
        matching=options.matching,
    )
    metrics = evaluation.named(
        {
            name + _suffix(name, options, num_classes=evaluator.num_classes()): value
            for name, value in alignment.metrics().items()
        }
    )
    evaluation.keep(metrics)
    return ClusterResult(metrics, alignment, tuple(evaluator.data.train.classes or ()))


def _suffix(metric: str, options: ClusterOptions, *, num_classes: int) -> str:
    """Return what sets the name of a number apart from that of the standard protocol."""
    standard = options.num_clusters is None or options.num_clusters == num_classes
    parts = [
        "" if standard else f"_k{options.num_clusters}",
        "_count" if options.matching == "count" and metric == "cluster_alignment" else "",
        "_spherical" if options.spherical else "",
        "" if options.minibatch is None else "_minibatch",
        "" if options.restarts == NUM_RESTARTS else f"_r{options.restarts}",
        "" if options.iterations == NUM_ITERATIONS else f"_i{options.iterations}",
    ]
    return "".join(parts)
