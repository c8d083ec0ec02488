"""Cluster alignment: how well k-means clusters of embeddings agree with classes.

Protocol (CompRess, NeurIPS 2020): k-means on the L2-normalized training embeddings, as many
clusters as classes (`distill.evaluation.kmeans`); every image belongs to its nearest centroid. A
cluster and a class score |cluster and class| / |cluster|, and the one-to-one mapping with the
largest sum of scores is found by the Hungarian algorithm on the training images. Cluster alignment
is the accuracy of that mapping on the validation images. With `matching="count"` the score is
|cluster and class|, which finds the mapping that is right for most training images.

Also measured, independent of the mapping: normalized mutual information (over the arithmetic mean
of the entropies), adjusted Rand index (both scikit-learn's) and purity, the share of images in the
commonest class of their cluster, which grows with the number of clusters.

Shapes: N training images, M validation images, D width, K clusters, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from distill.config import AtLeast1
from distill.embeddings.search import Rows, require_labels, require_splits
from distill.evaluation.base import (
    Evaluation,
    EvaluationOptions,
    EvaluationResult,
    Metric,
    Seed,
    Subject,
    Table,
    register_evaluation,
)
from distill.evaluation.kmeans import (
    NUM_ITERATIONS,
    NUM_RESTARTS,
    kmeans,
    nearest_centroids,
    require_clusters,
)

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
    """Return the share of validation images in the class that their cluster is mapped to.

    Args:
        train_features: (N, D), any scale.
        train_labels: (N,) classes, at least 0.
        val_features: (M, D), any scale.
        val_labels: (M,) classes, at least 0.
        num_clusters: From 1 to N; None: as many as there are classes among the training images.
        seed: Picks the first centroids; from 0 to 2^31 - 1.
        restarts: Of k-means, see `kmeans`; 1 as published.

    Raises:
        DistillError: Labels that are missing, of one class or not one per embedding; embeddings of
            different widths or not finite; numbers that k-means cannot do (`kmeans`).

    Example:
        >>> import numpy as np
        >>> train = np.array([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]])
        >>> cluster_alignment(train, np.array([3, 3, 7, 7]), train[:2], np.array([3, 7]))
        0.5
    """
    require_splits(train_features, train_labels, val_features, val_labels)
    if num_clusters is None:
        num_clusters = len(np.unique(train_labels))
    centroids = kmeans(train_features, num_clusters, seed=seed, restarts=restarts)
    return align(
        nearest_centroids(train_features, centroids),
        train_labels,
        nearest_centroids(val_features, centroids),
        val_labels,
        num_clusters=num_clusters,
    ).accuracy


@dataclass(frozen=True)
class Alignment:
    """Mapping of clusters to classes, fitted on training images, and its accuracy.

    Attributes:
        accuracy: Share of validation images whose class is that of their cluster.
        train_accuracy: The same of the training images.
        nmi: Normalized mutual information of clusters and classes, in [0, 1], of validation images.
        ari: Adjusted Rand index, 0 on average for clusters by chance, at most 1; likewise.
        purity: Share of validation images of the commonest class of their cluster, in (0, 1].
        mapping: (K,) int64, the class of every cluster, -1 for none.
        classes: (C,) int64, the classes of the columns of `contingency`, sorted.
        contingency: (K, C) int64, training images of every cluster and class.
        val_sizes: (K,) int64, validation images of every cluster.
    """

    accuracy: float
    train_accuracy: float
    nmi: float
    ari: float
    purity: float
    mapping: np.ndarray
    classes: np.ndarray
    contingency: np.ndarray
    val_sizes: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """(K,) int64, training images of every cluster."""
        return self.contingency.sum(axis=1)

    @property
    def matched_share(self) -> np.ndarray:
        """(K,) float64, share of each cluster in the class it is mapped to; 0 for none."""
        columns = np.searchsorted(self.classes, np.maximum(self.mapping, self.classes[0]))
        counts = self.contingency[np.arange(len(self.mapping)), columns]
        return np.where(self.mapping >= 0, counts, 0) / np.maximum(self.sizes, 1)

    def notes(self) -> list[str]:
        """Return remarks on the mapping, as sentences."""
        num_clusters, num_classes = self.contingency.shape
        unmatched, empty = self.mapping < 0, self.sizes == 0
        forced = ~unmatched & ~empty & (self.matched_share == 0)
        num_clusterless = len(np.setdiff1d(self.classes, self.mapping))
        notes = (
            (
                unmatched.sum(),
                f"of {num_clusters} clusters stand for no class, because there are more clusters "
                f"than classes; the {self.val_sizes[unmatched].sum()} validation images in them "
                "count as wrong",
            ),
            (
                num_clusterless,
                f"of {num_classes} classes have no cluster, because there are fewer clusters than "
                "classes; their images count as wrong",
            ),
            (
                empty.sum(),
                f"of {num_clusters} clusters hold no training image, so that their class is "
                "arbitrary",
            ),
            (
                forced.sum(),
                f"of {num_clusters} clusters stand for a class that none of their training images "
                "has, because the mapping is one to one",
            ),
        )
        return [f"{count} {text}" for count, text in notes if count]


def align(
    train_clusters: np.ndarray,
    train_labels: np.ndarray,
    val_clusters: np.ndarray,
    val_labels: np.ndarray,
    *,
    num_clusters: int,
    matching: Matching = "purity",
) -> Alignment:
    """Map clusters to classes on the training images and score on the validation images.

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
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    require_labels(train_labels, what="the training images")
    require_labels(val_labels, what="the validation images", min_classes=1)
    classes, columns = np.unique(train_labels, return_inverse=True)
    table = contingency(train_clusters, columns, num_clusters, len(classes))
    val_classes, val_columns = np.unique(val_labels, return_inverse=True)
    val_table = contingency(val_clusters, val_columns, num_clusters, len(val_classes))
    columns_of_clusters = match_clusters(table, matching=matching)
    mapping = np.where(columns_of_clusters >= 0, classes[columns_of_clusters], -1)
    return Alignment(
        accuracy=float(np.mean(mapping[val_clusters] == val_labels)),
        train_accuracy=float(np.mean(mapping[train_clusters] == train_labels)),
        nmi=float(normalized_mutual_info_score(val_labels, val_clusters)),
        ari=float(adjusted_rand_score(val_labels, val_clusters)),
        purity=float(val_table.max(axis=1).sum() / len(val_labels)),
        mapping=mapping,
        classes=classes,
        contingency=table,
        val_sizes=val_table.sum(axis=1),
    )


def contingency(
    clusters: np.ndarray, labels: np.ndarray, num_clusters: int, num_classes: int
) -> np.ndarray:
    """Count the images of every cluster and class.

    Args:
        clusters: (N,), 0..K-1.
        labels: (N,), 0..C-1.
        num_clusters: K.
        num_classes: C.

    Returns:
        (K, C) int64.
    """
    assert len(clusters) == len(labels)
    assert ((clusters >= 0) & (clusters < num_clusters)).all()
    assert ((labels >= 0) & (labels < num_classes)).all()
    cells = clusters.astype(np.int64) * num_classes + labels
    counts = np.bincount(cells, minlength=num_clusters * num_classes)
    return counts.reshape(num_clusters, num_classes)


def match_clusters(contingency: np.ndarray, *, matching: Matching = "purity") -> np.ndarray:
    """Map clusters to classes one to one, with the largest sum of scores.

    Args:
        contingency: (K, C) counts.
        matching: `purity`: a cluster and a class score |cluster and class| / |cluster|, as
            published; an empty cluster scores 0. `count`: they score |cluster and class|.

    Returns:
        The column of every cluster (K,) int64; -1 for clusters without a class.

    Example:
        >>> import numpy as np
        >>> match_clusters(np.array([[60, 40], [9, 1]]))  # 0.4 + 0.9 is more than 0.6 + 0.1
        array([1, 0])
    """
    from scipy.optimize import linear_sum_assignment

    assert matching in ("purity", "count"), matching
    sizes = contingency.sum(axis=1, keepdims=True)
    scores = contingency / np.maximum(sizes, 1) if matching == "purity" else contingency
    clusters, classes = linear_sum_assignment(scores, maximize=True)
    mapping = np.full(len(contingency), -1, dtype=np.int64)
    mapping[clusters] = classes
    return mapping


_KINDS = {
    "nmi": "normalized mutual information",
    "ari": "adjusted Rand index",
    "purity": "purity",
}


def _meaning(name: re.Match[str]) -> str:
    number = name["k"]
    setting = [f"{number} clusters" if number else "as many clusters as classes"]
    kinds = [words for words in ("spherical", "minibatch") if name[words]]
    setting += [f"{' '.join(kinds)} k-means"] if kinds else []
    setting += [f"started {name['r']} times"] if name["r"] else []
    setting += [f"{name['i']} iterations"] if name["i"] else []
    if name["kind"] != "alignment":
        of = "k-means clusters and classes of the validation images"
        return f"{_KINDS[name['kind']]} of {of} ({', '.join(setting)})"
    how = "by count on the training images" if name["count"] else "on the training images"
    return (
        "share of the validation images in the class that their k-means cluster stands for "
        f"({', '.join([*setting, f'matched to classes {how}'])})"
    )


@register_evaluation(
    "clusters",
    summary="measure how a student's clusters agree with classes",
    examples="""\
  distill clusters runs/first --data photos
      as many clusters as classes, matched one to one
  distill clusters runs/first --data photos --num-clusters 100 --per-cluster
      more clusters than classes: some are matched to no class
  distill clusters runs/first --data photos --restarts 1 --seed 1
      k-means once, as published, from other starting points
  distill clusters runs/first --data imagenet --minibatch 65536
      mini-batch k-means, for embeddings beyond memory
  distill clusters alexnet.pth --student alexnet --data photos
      weights from another source""",
)
class Clusters(Evaluation["Clusters.Options"]):
    """Measure how well k-means clusters of a student's embeddings agree with classes."""

    is_shared = True
    METRICS = (
        Metric(
            r"cluster_(?P<kind>alignment|nmi|ari|purity)(_k(?P<k>\d+))?(?P<count>_count)?"
            r"(?P<spherical>_spherical)?(?P<minibatch>_minibatch)?(_r(?P<r>\d+))?(_i(?P<i>\d+))?",
            _meaning,
        ),
    )

    @dataclass(frozen=True)
    class Options(EvaluationOptions):
        """Options of `distill clusters`."""

        num_clusters: AtLeast1 | None = None
        """Number of clusters; None: as many as there are classes."""
        matching: Matching = "purity"
        """What the mapping of clusters to classes maximizes: the sum of the clusters' purities, as
        published, or the number of correct images."""
        restarts: AtLeast1 = NUM_RESTARTS
        """Starts of k-means; the one with the smallest distances is kept. Published: 1."""
        iterations: AtLeast1 = NUM_ITERATIONS
        """Of k-means."""
        spherical: bool = False
        """Scale centroids to unit norm after every iteration."""
        minibatch: AtLeast1 | None = None
        """Batch size of mini-batch k-means, for embeddings beyond memory; None: k-means."""
        seed: Seed = 0
        """Picks the images that k-means starts from."""
        per_cluster: bool = False
        """Also print the contents of every cluster."""

    @classmethod
    def run(cls, subject: Subject, options: Options) -> EvaluationResult:
        """Measure; departures from the published protocol are part of the metrics' names."""
        embedder = subject.embedder
        num_images = len(embedder.train_index)
        require_clusters(options.num_clusters, num_images=num_images, seed=options.seed)
        train, val = subject.embeddings()
        require_splits(train.features, train.labels, val.features, val.labels)
        num_classes = len(np.unique(train.labels))
        centroids = kmeans(
            train.features,
            options.num_clusters or num_classes,
            seed=options.seed,
            num_iterations=options.iterations,
            restarts=options.restarts,
            spherical=options.spherical,
            batch_size=options.minibatch,
        )
        alignment = align(
            nearest_centroids(train.features, centroids),
            train.labels,
            nearest_centroids(val.features, centroids),
            val.labels,
            num_clusters=len(centroids),
            matching=options.matching,
        )
        number = f"_k{len(centroids)}" if len(centroids) != num_classes else ""
        count = "_count" if options.matching == "count" else ""
        rest = (
            ("_spherical" if options.spherical else "")
            + ("" if options.minibatch is None else "_minibatch")
            + ("" if options.restarts == NUM_RESTARTS else f"_r{options.restarts}")
            + ("" if options.iterations == NUM_ITERATIONS else f"_i{options.iterations}")
        )
        metrics = {
            f"cluster_alignment{number}{count}{rest}": alignment.accuracy,
            f"cluster_nmi{number}{rest}": alignment.nmi,
            f"cluster_ari{number}{rest}": alignment.ari,
            f"cluster_purity{number}{rest}": alignment.purity,
        }
        names = embedder.data.train.classes or ()
        tables = [_cluster_table(alignment, names)] if options.per_cluster else []
        return EvaluationResult(metrics, tables, alignment.notes())


def _cluster_table(alignment: Alignment, names: Sequence[str]) -> Table:
    """Return a row for every cluster."""
    rows = []
    for number, (label, counts) in enumerate(
        zip(alignment.mapping, alignment.contingency, strict=True)
    ):
        size = counts.sum()
        rows.append(
            [
                str(number),
                str(size),
                names[label] if label >= 0 else "-",
                f"{alignment.matched_share[number]:.4f}",
                names[alignment.classes[counts.argmax()]] if size else "-",
                f"{counts.max() / max(size, 1):.4f}",
            ]
        )
    header = ["cluster", "images", "stands for", "share of it", "commonest class", "purity"]
    return Table(header, rows)
