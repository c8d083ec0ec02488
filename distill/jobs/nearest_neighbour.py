"""Measures the nearest-neighbour accuracy of a trained student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.evaluation.nearest_neighbour import Vote
from distill.jobs.measurement import MeasurementOptions, open_evaluation


@dataclass(frozen=True)
class NearestNeighbourOptions(MeasurementOptions):
    """How `distill nn` measures."""

    k: int = 1
    """Neighbours that vote."""
    vote: Vote = "majority"
    """One voice each, or weighted by exp(similarity / 0.07)."""


def evaluate_nn(run_or_weights: Path, options: NearestNeighbourOptions) -> dict[str, Any]:
    """Measure a trained student.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with
            `options.student`.
        options: How to measure.

    Returns:
        What was added to metrics.json: `nn_accuracy` (k = 1), else `nn_accuracy_k5`,
        `nn_accuracy_k5_weighted` and so on.

    Raises:
        DistillError: No such run, weights that do not fit, no labels, k out of range.
    """
    evaluation = open_evaluation(run_or_weights, options)
    accuracy = evaluation.splits().nn_accuracy(k=options.k, vote=options.vote)
    metrics = {_metric_name(options.k, options.vote): accuracy}
    evaluation.keep(metrics)
    return metrics


def _metric_name(k: int, vote: Vote) -> str:
    name = "nn_accuracy" if k == 1 else f"nn_accuracy_k{k}"
    return name if vote == "majority" or k == 1 else f"{name}_{vote}"
