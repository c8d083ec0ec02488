"""Measures the cluster alignment of a trained student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.evaluation.cluster_alignment import require_clusters
from distill.jobs.measurement import MeasurementOptions, open_evaluation


@dataclass(frozen=True)
class ClusterOptions(MeasurementOptions):
    """How `distill clusters` measures."""

    num_clusters: int | None = None
    """Clusters to look for; None: as many as there are classes."""
    seed: int = 0
    """Picks the images that k-means starts from."""


def evaluate_clusters(run_or_weights: Path, options: ClusterOptions) -> dict[str, Any]:
    """Measure a trained student.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with
            `options.student`.
        options: How to measure.

    Returns:
        What was added to metrics.json: `cluster_alignment`, or `cluster_alignment_k20` and so on
        when there are not as many clusters as classes.

    Raises:
        DistillError: No such run, weights that do not fit, no labels, more clusters than training
            images, a seed out of range.
    """
    evaluation = open_evaluation(run_or_weights, options)
    evaluator = evaluation.evaluator
    require_clusters(options.num_clusters, num_images=len(evaluator.train_index), seed=options.seed)
    splits = evaluation.splits()
    alignment = splits.cluster_alignment(num_clusters=options.num_clusters, seed=options.seed)
    name = _metric_name(options.num_clusters, num_classes=evaluator.num_classes())
    metrics = {name: alignment}
    evaluation.keep(metrics)
    return metrics


def _metric_name(num_clusters: int | None, *, num_classes: int) -> str:
    standard = num_clusters is None or num_clusters == num_classes
    return "cluster_alignment" if standard else f"cluster_alignment_k{num_clusters}"
