"""Measures the cluster alignment of a trained student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.evaluation.alignment import Alignment
from distill.evaluation.cluster_alignment import Matching, align_clusters
from distill.evaluation.kmeans import (
    NUM_ITERATIONS,
    NUM_RESTARTS,
    Clustering,
    Minibatch,
    require_clusters,
)
from distill.jobs.measurement import MeasurementOptions, open_evaluation


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
