"""The two numbers that training reports of teacher, untrained and trained student."""

from __future__ import annotations

from pathlib import Path

from distill.embeddings.cache import StoredEmbeddings
from distill.embeddings.embed import Embeddings
from distill.evaluation.base import EvaluationOptions, EvaluationResult, open_evaluation
from distill.evaluation.clusters import cluster_alignment
from distill.evaluation.nn import nn_accuracy


def standard_metrics(
    train: Embeddings | StoredEmbeddings, val: Embeddings | StoredEmbeddings
) -> dict[str, float]:
    """Return `nn_accuracy` and `cluster_alignment` by the published protocols.

    Args:
        train: Of the training images, which are indexed and clustered.
        val: Of the validation images, on which both accuracies are counted.

    Raises:
        DistillError: Labels that are missing or of one class, embeddings that are not finite.
    """
    both = train.features, train.labels, val.features, val.labels
    return {"nn_accuracy": nn_accuracy(*both), "cluster_alignment": cluster_alignment(*both)}


def evaluate_standard(run_or_weights: Path, options: EvaluationOptions) -> EvaluationResult:
    """Measure a trained network by both, and add the numbers to metrics.json.

    Raises:
        DistillError: See `open_evaluation` and `standard_metrics`.
    """
    subject = open_evaluation(run_or_weights, options)
    return subject.keep(EvaluationResult(standard_metrics(*subject.embeddings())))
