"""The cluster page: what the student's training embeddings fall into, shown by random images.

Clusters, contingency and matching are those of `distill.evaluation.cluster_alignment`.

Shapes: N training images, K clusters, C classes that occur; K = C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.evaluation.cluster_alignment import (
    contingency,
    kmeans,
    match_clusters,
    nearest_centroids,
)
from distill.evaluation.nearest_neighbour import require_labels
from distill.jobs.report_neighbours import Eyes
from distill.jobs.report_thumbnails import Thumbnails
from distill.report.content import Cluster, ClusterSection

NUM_RANDOM, NUM_EXTREME = 6, 3
NUM_PICTURES = 10


@dataclass(frozen=True)
class ClusterTable:
    """What k-means found.

    Attributes:
        assignment: (N,) the cluster of every image.
        counts: (K, C) images by cluster and class.
        matched: (K,) the class, by column, that each cluster stands for.
        classes: (C,) the labels of the columns.
    """

    assignment: np.ndarray
    counts: np.ndarray
    matched: np.ndarray
    classes: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Images of every cluster (K,)."""
        return self.counts.sum(axis=1)

    @property
    def purity(self) -> np.ndarray:
        """Share of every cluster that is of its class (K,); 0 for an empty one."""
        own = self.counts[np.arange(len(self.counts)), self.matched]
        return own / np.maximum(self.sizes, 1)


def cluster_table(features: np.ndarray, labels: np.ndarray, *, seed: int) -> ClusterTable:
    """Cluster embeddings into as many clusters as there are classes and match the two.

    Args:
        features: (N, D), any scale.
        labels: (N,) classes, at least 0, of two or more.
        seed: Of k-means.
    """
    classes, columns = np.unique(labels, return_inverse=True)
    centroids = kmeans(features, len(classes), seed=seed)
    assignment = nearest_centroids(features, centroids)
    counts = contingency(assignment, columns, len(classes), len(classes))
    return ClusterTable(assignment, counts, match_clusters(counts), classes)


def cluster_section(student: Eyes, seed: int) -> ClusterSection:
    """Return the cluster page of a student.

    Raises:
        DistillError: The training images have no labels, or are of one class.
    """
    images = student.indexed_pictures.images
    require_labels(student.indexed.labels, what=f"the images of {images.name}")
    table = cluster_table(student.indexed.features, student.indexed.labels, seed=seed)
    rng = np.random.default_rng(seed)
    there = np.flatnonzero(table.sizes)
    by_purity = there[np.argsort(-table.purity[there], kind="stable")]
    num_extreme = max(1, min(NUM_EXTREME, len(there) // 2))
    drawn = np.sort(rng.choice(there, min(NUM_RANDOM, len(there)), replace=False))

    def shown(numbers: np.ndarray) -> list[Cluster]:
        return [_cluster(table, int(number), student, rng) for number in numbers]

    order = np.argsort(table.matched)
    shares = table.counts / np.maximum(table.sizes, 1)[:, None]
    names = [str(images.classes[label]) for label in table.classes]  # type: ignore[index]
    return ClusterSection(
        facts=f"{len(student.indexed.labels):,} images of {images.name}, embedded by the student, "
        f"in {len(table.counts)} clusters by k-means, as many as there are classes; every cluster "
        "stands for one class, so that the shares of those classes are the largest in sum.",
        random=shown(drawn),
        best=shown(by_purity[:num_extreme]),
        worst=shown(by_purity[::-1][:num_extreme]),
        shares=shares[order],
        rows=[f"cluster {number}" for number in order],
        columns=names,
    )


def _cluster(table: ClusterTable, number: int, student: Eyes, rng: np.random.Generator) -> Cluster:
    """Return a cluster with some of its images, drawn at random."""
    pictures: Thumbnails = student.indexed_pictures
    label = int(table.classes[table.matched[number]])
    members = np.flatnonzero(table.assignment == number)
    drawn = rng.choice(members, min(NUM_PICTURES, len(members)), replace=False)
    assert pictures.images.classes is not None
    return Cluster(
        number=number,
        size=len(members),
        matched=str(pictures.images.classes[label]),
        purity=float(table.purity[number]),
        pictures=[
            pictures.picture(
                int(student.indexed.index[row]),
                is_right=bool(student.indexed.labels[row] == label),
            )
            for row in drawn
        ],
    )
