"""What nearest neighbors got right and wrong: by k, by class, and which class for which.

Shapes: M queries, C classes.

Nearest-neighbor accuracy: an image is of the class that its neighbors are of.

Protocol (CompRess, NeurIPS 2020): L2-normalized embeddings, k = 1, exact search over the training
set. For larger k the neighbors vote, each with one voice or weighted by exp(similarity / 0.07)
(Wu et al., CVPR 2018). Search is FAISS's exact inner product, on the GPU when FAISS sees one, or
through inverted lists, which is faster and may miss neighbors.

Shapes: N indexed images, M queries, D width, k neighbors, C classes.

Measures a trained student by nearest neighbors: by their classes, and beside its teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill.embeddings.search import (
    Rows,
    exact_index,
    gpu_is_seen,
    l2_normalized,
    nearest_neighbors,
    require_ks,
    require_labels,
    require_same_width,
    require_seed,
    require_splits,
)
from distill.errors import DistillError
from distill.evaluation.agreement import Agreement, measure_agreement
from distill.evaluation.base import (
    Evaluation,
    ReferenceTeacherOptions,
    open_evaluation,
    reference_teacher,
)
from distill.evaluation.inverted_lists import InvertedLists


@dataclass(frozen=True)
class ClassScore:
    """How one class fared.

    Attributes:
        label: The class.
        num_images: Queries that are of it.
        accuracy: Share of them that were predicted so.
        confused_with: The class that the wrong ones were predicted as most often; None when none
            was wrong.
        confused_share: Share of the class's queries that were taken for it.
    """

    label: int
    num_images: int
    accuracy: float
    confused_with: int | None
    confused_share: float


@dataclass(frozen=True)
class NearestNeighborScores:
    """Predictions of several k from one search.

    Attributes:
        labels: (M,) the classes that queries are of, at least 0.
        predicted: (M,) predictions by k.
        recall: Share of the true neighbors that the search found, measured on a sample; None when
            it was exact.
    """

    labels: np.ndarray
    predicted: Mapping[int, np.ndarray]
    recall: float | None = None

    def accuracy(self, k: int) -> float:
        """Return the share of queries that are predicted right."""
        return float(np.mean(self.predicted[k] == self.labels))

    def accuracies(self) -> dict[int, float]:
        """Return the accuracy of every k."""
        return {k: self.accuracy(k) for k in self.predicted}

    def classes(self, k: int) -> np.ndarray:
        """Return the classes (C,) that queries are of or are predicted as, sorted."""
        return np.union1d(self.labels, self.predicted[k])

    def confusion(self, k: int) -> np.ndarray:
        """Return counts (C, C) int64: rows are the true classes, columns the predicted ones.

        Rows and columns are in the order of `classes`.
        """
        classes = self.classes(k)
        rows, columns = (np.searchsorted(classes, x) for x in (self.labels, self.predicted[k]))
        counts = np.bincount(rows * len(classes) + columns, minlength=len(classes) ** 2)
        return counts.reshape(len(classes), len(classes))

    def by_class(self, k: int) -> list[ClassScore]:
        """Return a row for every class that queries are of, in the order of labels."""
        classes, confusion = self.classes(k), self.confusion(k)
        return [
            _class_score(int(label), place, counts, classes)
            for place, (label, counts) in enumerate(zip(classes, confusion, strict=True))
            if counts.any()
        ]


def _class_score(label: int, place: int, counts: np.ndarray, classes: np.ndarray) -> ClassScore:
    wrong = counts.copy()
    wrong[place] = 0
    total, most = int(counts.sum()), int(wrong.argmax())
    return ClassScore(
        label=label,
        num_images=total,
        accuracy=float(counts[place] / total),
        confused_with=int(classes[most]) if wrong[most] else None,
        confused_share=float(wrong[most] / total),
    )


__all__ = [
    "VOTE_TEMPERATURE",
    "Vote",
    "exact_index",
    "gpu_is_seen",
    "l2_normalized",
    "nearest_neighbors",
    "nn_accuracy",
    "nn_scores",
    "predict",
    "require_labels",
    "require_same_width",
]

Vote = Literal["majority", "weighted"]
VOTE_TEMPERATURE = 0.07


def nn_accuracy(
    train_features: Rows,
    train_labels: np.ndarray,
    val_features: Rows,
    val_labels: np.ndarray,
    *,
    k: int = 1,
    vote: Vote = "majority",
) -> float:
    """Return the share of queries whose class the k nearest training images give.

    Args:
        train_features: (N, D), any scale.
        train_labels: (N,) classes, at least 0.
        val_features: (M, D), any scale.
        val_labels: (M,) classes, at least 0.
        k: Neighbors that vote, from 1 to N.
        vote: One voice each, or weighted by similarity.

    Raises:
        DistillError: See `nn_scores`.
    """
    scores = nn_scores(train_features, train_labels, val_features, val_labels, ks=(k,), vote=vote)
    return scores.accuracy(k)


def nn_scores(
    train_features: Rows,
    train_labels: np.ndarray,
    val_features: Rows,
    val_labels: np.ndarray,
    *,
    ks: Sequence[int] = (1,),
    vote: Vote = "majority",
    ivf: InvertedLists | None = None,
) -> NearestNeighborScores:
    """Predict the class of every query for several k, from one search for the largest.

    Args:
        train_features: (N, D), any scale; read in blocks.
        train_labels: (N,) classes, at least 0.
        val_features: (M, D), any scale; read in blocks.
        val_labels: (M,) classes, at least 0.
        ks: Numbers of neighbors that vote, each from 1 to N.
        vote: One voice each, or weighted by similarity.
        ivf: How to search approximately; None: exact.

    Returns:
        Predictions and what follows from them, with the recall of an approximate search.

    Raises:
        DistillError: Labels that are missing, of one class or not one per embedding; no k or one
            outside 1..N; embeddings that are not finite or of different widths.
    """
    require_splits(train_features, train_labels, val_features, val_labels)
    require_ks(ks, most=len(train_features))
    k = max(ks)
    if ivf is None:
        neighbors, similarities = nearest_neighbors(train_features, val_features, k=k)
        recall = None
    else:
        neighbors, similarities, recall = ivf.search(train_features, val_features, k=k)
    voters = train_labels[neighbors]
    predicted = {k: predict(voters[:, :k], similarities[:, :k], vote=vote) for k in sorted(set(ks))}
    return NearestNeighborScores(val_labels, predicted, recall=recall)


def predict(neighbor_labels: np.ndarray, similarities: np.ndarray, *, vote: Vote) -> np.ndarray:
    """Return the winning class of every row; a draw goes to the class that is nearer.

    Args:
        neighbor_labels: (M, k) classes, nearest first.
        similarities: (M, k) cosine similarities.
        vote: One voice each, or weighted by similarity.
    """
    weights = np.ones_like(similarities, dtype=np.float64)
    if vote == "weighted":
        nearest = similarities[:, :1].astype(np.float64)  # subtracted, so that exp cannot overflow
        weights = np.exp((similarities - nearest) / VOTE_TEMPERATURE)
    votes = np.zeros_like(weights)
    for j in range(neighbor_labels.shape[1]):  # M x k at a time: k x k voices a row would not fit
        votes += weights[:, j : j + 1] * (neighbor_labels == neighbor_labels[:, j : j + 1])
    # Summation order makes equal votes differ in the last digit; rounding keeps them equal.
    winner = np.argmax(np.round(votes, 9), axis=1)
    return neighbor_labels[np.arange(len(winner)), winner]


@dataclass(frozen=True)
class NearestNeighborOptions(ReferenceTeacherOptions):
    """How `distill nn` measures."""

    k: tuple[int, ...] = (1,)
    """Neighbors that vote; several numbers come from one search."""
    vote: Vote = "majority"
    """One voice each, or weighted by exp(similarity / 0.07)."""
    ivf: bool = False
    """Search through inverted lists, faster on millions of images, and say what that misses."""
    ivf_lists: int | None = None
    """Number of lists; None: the square root of the number of training images."""
    ivf_probes: int = 16
    """Lists that an image is compared with."""
    agreement: bool = False
    """Also measure how many of the k nearest images are those that the teacher sees; the one
    measure that needs no labels."""
    agreement_images: int = 10_000
    """Images whose neighbors are compared, at most; drawn by the seed."""
    seed: int = 0
    """Of the lists, and of what is drawn."""


@dataclass(frozen=True)
class NearestNeighborResult:
    """What `distill nn` found.

    Attributes:
        metrics: What was added to metrics.json, by name, as fractions of 1.
        scores: By k; None for data without labels.
        classes: Names of the classes by label.
        agreement: None when it was not asked for.
    """

    metrics: dict[str, Any]
    scores: NearestNeighborScores | None
    classes: tuple[str, ...]
    agreement: Agreement | None


def evaluate_nn(run_or_weights: Path, options: NearestNeighborOptions) -> NearestNeighborResult:
    """Measure a trained student.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with
            `options.student`.
        options: How to measure.

    Returns:
        The metrics are `nn_accuracy` (k = 1), else `nn_accuracy_k5`, `nn_accuracy_k5_weighted` and
        so on; through inverted lists these end in `_ivf`, and there is `nn_recall_ivf`; then
        `neighbor_agreement_k1` and so on.

    Raises:
        DistillError: No such run, weights that do not fit, no labels (unless agreement is asked
            for), a number out of range, no teacher to agree with.
    """
    require_seed(options.seed)
    evaluation = open_evaluation(run_or_weights, options)
    require_ks(options.k, most=len(evaluation.evaluator.train_index))  # before they are embedded
    teacher = reference_teacher(run_or_weights, options)
    if options.agreement and teacher is None:
        raise DistillError(
            f"--agreement needs a teacher, and {run_or_weights} names none; add --teacher"
        )
    scores = agreement = None
    metrics: dict[str, Any] = {}
    if not options.agreement or evaluation.evaluator.unavailable_reason() is None:
        scores = _scores(evaluation, options)
        metrics |= _accuracies(scores, options)
    if options.agreement:
        assert teacher is not None
        agreement = measure_agreement(
            evaluation,
            teacher,
            ks=options.k,
            num_images=options.agreement_images,
            seed=options.seed,
        )
        metrics |= agreement.metrics()
    metrics = evaluation.named(metrics)
    evaluation.keep(metrics)
    classes = tuple(evaluation.evaluator.data.train.classes or ())
    return NearestNeighborResult(metrics, scores, classes, agreement)


def _scores(evaluation: Evaluation, options: NearestNeighborOptions) -> NearestNeighborScores:
    train, val = evaluation.stored()
    lists = InvertedLists(options.ivf_lists, options.ivf_probes, seed=options.seed)
    return nn_scores(
        train.features,
        train.labels,
        val.features,
        val.labels,
        ks=options.k,
        vote=options.vote,
        ivf=lists if options.ivf else None,
    )


def _accuracies(scores: NearestNeighborScores, options: NearestNeighborOptions) -> dict[str, float]:
    suffix = "_ivf" if options.ivf else ""
    found = {
        _metric_name(k, options.vote) + suffix: accuracy
        for k, accuracy in scores.accuracies().items()
    }
    return found if scores.recall is None else {**found, "nn_recall_ivf": scores.recall}


def _metric_name(k: int, vote: Vote) -> str:
    name = "nn_accuracy" if k == 1 else f"nn_accuracy_k{k}"
    return name if vote == "majority" or k == 1 else f"{name}_{vote}"
