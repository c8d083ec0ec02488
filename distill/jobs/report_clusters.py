"""The cluster page: what the student's training embeddings fall into, shown by random images.

Clusters, contingency and matching are those of `distill.evaluation.cluster_alignment`.

Shapes: N training images, K clusters, C classes that occur; K = C.
"""

from __future__ import annotations

import numpy as np

from distill.evaluation.alignment import Alignment
from distill.evaluation.cluster_alignment import align
from distill.evaluation.kmeans import Clustering, nearest_centroids
from distill.evaluation.nearest_neighbour import require_labels
from distill.jobs.report_neighbours import Eyes
from distill.jobs.report_thumbnails import Thumbnails
from distill.report.content import Cluster, ClusterSection

NUM_RANDOM, NUM_EXTREME = 6, 3
NUM_PICTURES = 10


def clustered(
    features: np.ndarray, labels: np.ndarray, *, seed: int
) -> tuple[np.ndarray, Alignment]:
    """Cluster embeddings into as many clusters as there are classes and match the two.

    Args:
        features: (N, D), any scale.
        labels: (N,) classes, at least 0, of two or more.
        seed: Of k-means.

    Returns:
        The cluster of every image (N,), and which class every cluster stands for.
    """
    centroids = Clustering(seed=seed).centroids(features, num_classes=len(np.unique(labels)))
    of_image = nearest_centroids(features, centroids)
    return of_image, align(of_image, labels, of_image, labels, num_clusters=len(centroids))


def cluster_section(student: Eyes, seed: int) -> ClusterSection:
    """Return the cluster page of a student.

    Raises:
        DistillError: The training images have no labels, or are of one class.
    """
    images = student.indexed_pictures.images
    require_labels(student.indexed.labels, what=f"the images of {images.name}")
    of_image, found = clustered(student.indexed.features, student.indexed.labels, seed=seed)
    rng = np.random.default_rng(seed)
    there = np.flatnonzero(found.sizes)
    by_purity = there[np.argsort(-found.matched_share[there], kind="stable")]
    num_extreme = max(1, min(NUM_EXTREME, len(there) // 2))
    drawn = np.sort(rng.choice(there, min(NUM_RANDOM, len(there)), replace=False))

    def shown(numbers: np.ndarray) -> list[Cluster]:
        return [
            _cluster(int(number), np.flatnonzero(of_image == number), found, student, rng)
            for number in numbers
        ]

    order = np.argsort(found.mapping)
    shares = found.contingency / np.maximum(found.sizes, 1)[:, None]
    names = [str(images.classes[label]) for label in found.classes]  # type: ignore[index]
    return ClusterSection(
        facts=f"{len(student.indexed.labels):,} images of {images.name}, embedded by the student, "
        f"in {len(found.sizes)} clusters by k-means, as many as there are classes; every cluster "
        "stands for one class, so that the shares of those classes are the largest in sum.",
        random=shown(drawn),
        best=shown(by_purity[:num_extreme]),
        worst=shown(by_purity[::-1][:num_extreme]),
        shares=shares[order],
        rows=[f"cluster {number}" for number in order],
        columns=names,
    )


def _cluster(
    number: int, members: np.ndarray, found: Alignment, student: Eyes, rng: np.random.Generator
) -> Cluster:
    """Return a cluster with some of its images, drawn at random."""
    pictures: Thumbnails = student.indexed_pictures
    label = int(found.mapping[number])
    drawn = rng.choice(members, min(NUM_PICTURES, len(members)), replace=False)
    assert pictures.images.classes is not None
    return Cluster(
        number=number,
        size=len(members),
        matched=str(pictures.images.classes[label]),
        purity=float(found.matched_share[number]),
        pictures=[
            pictures.picture(
                int(student.indexed.index[row]),
                is_right=bool(student.indexed.labels[row] == label),
            )
            for row in drawn
        ],
    )
