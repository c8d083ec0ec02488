"""Measures a trained student by nearest neighbours: by their classes, and beside its teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.evaluation.inverted_lists import InvertedLists
from distill.evaluation.nearest_neighbour import Vote, nn_scores
from distill.evaluation.nn_scores import NearestNeighbourScores
from distill.evaluation.requirements import require_ks, require_seed
from distill.jobs.agreement import Agreement, measure_agreement
from distill.jobs.measurement import Evaluation, open_evaluation
from distill.jobs.teacher_beside import BesideOptions, named_teacher


@dataclass(frozen=True)
class NearestNeighbourOptions(BesideOptions):
    """How `distill nn` measures."""

    k: tuple[int, ...] = (1,)
    """Neighbours that vote; several numbers come from one search."""
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
    """Images whose neighbours are compared, at most; drawn by the seed."""
    seed: int = 0
    """Of the lists, and of what is drawn."""


@dataclass(frozen=True)
class NearestNeighbourResult:
    """What `distill nn` found.

    Attributes:
        metrics: What was added to metrics.json, by name, as fractions of 1.
        scores: By k; None for data without labels.
        classes: Names of the classes by label.
        agreement: None when it was not asked for.
    """

    metrics: dict[str, Any]
    scores: NearestNeighbourScores | None
    classes: tuple[str, ...]
    agreement: Agreement | None


def evaluate_nn(run_or_weights: Path, options: NearestNeighbourOptions) -> NearestNeighbourResult:
    """Measure a trained student.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with
            `options.student`.
        options: How to measure.

    Returns:
        The metrics are `nn_accuracy` (k = 1), else `nn_accuracy_k5`, `nn_accuracy_k5_weighted` and
        so on; through inverted lists these end in `_ivf`, and there is `nn_recall_ivf`; then
        `neighbour_agreement_k1` and so on.

    Raises:
        DistillError: No such run, weights that do not fit, no labels (unless agreement is asked
            for), a number out of range, no teacher to agree with.
    """
    require_seed(options.seed)
    evaluation = open_evaluation(run_or_weights, options)
    require_ks(options.k, most=len(evaluation.evaluator.train_index))  # before they are embedded
    teacher = named_teacher(run_or_weights, options)
    if options.agreement and teacher is None:
        raise DistillError(
            f"--agreement needs a teacher, and {run_or_weights} names none; add --teacher"
        )
    scores = agreement = None
    metrics: dict[str, Any] = {}
    if not options.agreement or evaluation.evaluator.why_not() is None:
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
    return NearestNeighbourResult(metrics, scores, classes, agreement)


def _scores(evaluation: Evaluation, options: NearestNeighbourOptions) -> NearestNeighbourScores:
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


def _accuracies(
    scores: NearestNeighbourScores, options: NearestNeighbourOptions
) -> dict[str, float]:
    suffix = "_ivf" if options.ivf else ""
    found = {
        _metric_name(k, options.vote) + suffix: accuracy
        for k, accuracy in scores.accuracies().items()
    }
    return found if scores.recall is None else {**found, "nn_recall_ivf": scores.recall}


def _metric_name(k: int, vote: Vote) -> str:
    name = "nn_accuracy" if k == 1 else f"nn_accuracy_k{k}"
    return name if vote == "majority" or k == 1 else f"{name}_{vote}"
