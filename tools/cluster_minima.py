"""Find out whether a student's embeddings or k-means itself limit its cluster alignment.

    python tools/cluster_minima.py runs/photos --data photos

A line for each of three sets of centroids, one for every class: the classes' own means, those of
`distill clusters`, and those of k-means started from the class means. If the first score well and
the others do not, the embeddings separate the classes but the smallest distances lie elsewhere.
Distances are the mean squares to the nearest centroid on the training images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.embeddings.search import l2_normalized
from distill.evaluation.base import EvaluationOptions, open_evaluation
from distill.evaluation.clusters import align
from distill.evaluation.kmeans import kmeans, kmeans_once, nearest_centroids


@dataclass(frozen=True)
class CentroidScores:
    """What a set of centroids, one for each class, does with the images.

    Attributes:
        name: Where they come from.
        distance: Mean square to the nearest of them, of training images.
        accuracy: Share of validation images in the right cluster.
        largest: Training images of the largest cluster.
        commonest: Of them those of its commonest class.
    """

    name: str
    distance: float
    accuracy: float
    largest: int
    commonest: int


def compare_centroids(
    train: np.ndarray, train_labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray
) -> list[CentroidScores]:
    """Compare the three sets of centroids.

    Args:
        train: (N, D), any scale.
        train_labels: (N,) classes, at least 0.
        val: (M, D), any scale.
        val_labels: (M,) classes, at least 0.
    """
    train = l2_normalized(train)
    classes = np.unique(train_labels)
    means = np.stack([train[train_labels == one].mean(axis=0) for one in classes])
    found = {
        "class means": means,
        "k-means": kmeans(train, len(classes), seed=0),
        "k-means from class means": kmeans_once(train, len(means), start=means)[1],
    }
    labels = (train_labels, val_labels)
    return [_scores(name, one, (train, val), labels) for name, one in found.items()]


def _scores(
    name: str,
    centroids: np.ndarray,
    features: tuple[np.ndarray, np.ndarray],
    labels: tuple[np.ndarray, np.ndarray],
) -> CentroidScores:
    train, val = (nearest_centroids(one, centroids) for one in features)
    found = align(train, labels[0], val, labels[1], num_clusters=len(centroids))
    largest = int(found.sizes.argmax())
    return CentroidScores(
        name,
        distance=float(np.square(features[0] - centroids[train]).sum(axis=1).mean()),
        accuracy=found.accuracy,
        largest=int(found.sizes[largest]),
        commonest=int(found.contingency[largest].max()),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Embed the images unless that is done, and print the lines; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run directory, or student.safetensors")
    parser.add_argument("--data", help="as for distill clusters")
    arguments = parser.parse_args(argv)
    subject = open_evaluation(arguments.run, EvaluationOptions(data=arguments.data))
    train, val = (rows.in_memory() for rows in subject.embeddings())
    print(f"{'centroids':26}{'distance':>10}{'right':>8}{'largest cluster, of it one class':>36}")
    for one in compare_centroids(train.features, train.labels, val.features, val.labels):
        largest = f"{one.largest}, {one.commonest}"
        print(f"{one.name:26}{one.distance:10.5f}{one.accuracy:8.3f}{largest:>36}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
