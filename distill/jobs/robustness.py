"""Measures a trained student, and its teacher beside it, under corruption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distill.config import TeacherOptions
from distill.data.corruptions import (
    CORRUPTIONS,
    PUBLISHED_IMAGE_SIZE,
    SEVERITIES,
    prepare,
    require_corruptions,
    require_image_size,
)
from distill.engine.run_directory import read_config
from distill.errors import DistillError
from distill.evaluation.frozen_head import HeadName
from distill.jobs.corruption_errors import CorruptionResult, corruption_errors
from distill.jobs.frozen_classifier import FrozenClassifier
from distill.jobs.measurement import Evaluation, MeasurementOptions, open_evaluation
from distill.jobs.teacher_cache import load_teacher_of
from distill.networks import EmbeddingNetwork, place

NONE = "none"
_ON_THE_FLY = "corrupted on the fly: near, but not the same as, the published ImageNet-C JPEG files"


@dataclass(frozen=True)
class RobustnessOptions(MeasurementOptions):
    """How `distill robustness` measures."""

    corruptions: tuple[str, ...] = ()
    """Names of ImageNet-C; none given: all fifteen; `none`: none of them."""
    severities: tuple[int, ...] = ()
    """From 1 to 5; none given: all five."""
    head: HeadName = "nn"
    """What predicts from embeddings, fitted on clean training images: nearest neighbour or
    logistic regression."""
    num_images: int | None = None
    """Validation images to corrupt, drawn by the seed; None: all."""
    seed: int = 0
    """Of the drawn images and of the corruptions."""
    teacher: str | None = None
    """Teacher to measure beside the student; None: the one of the run, if it is a run."""
    teacher_weights: Path | None = None
    """Weights of --teacher; None: the published ones."""
    teacher_image_size: int | None = None
    """Side of the view of --teacher in pixels; None: the side it was trained with."""
    no_teacher: bool = False
    """Leave the run's teacher out."""


@dataclass(frozen=True)
class RobustnessResult:
    """What was measured.

    Attributes:
        corrupted: Under corruption, the student first.
        metrics: What was added to metrics.json.
        notes: What a reader of the numbers must know.
    """

    corrupted: list[CorruptionResult] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def evaluate_robustness(run_or_weights: Path, options: RobustnessOptions) -> RobustnessResult:
    """Measure a trained student; what robustness.json knows already is not measured again.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with
            `options.student`.
        options: How to measure.

    Returns:
        Errors by network, and the metrics `robustness_mean_error`, `robustness_clean_error`,
        `robustness_gap` and, where it is defined, `robustness_mce`; the teacher's start with
        `teacher_`.

    Raises:
        DistillError: No such run, weights that do not fit, no labels, no validation images, an
            unknown corruption, or the package that corrupts is not installed.
    """
    corruptions, severities = _wanted(options)
    if corruptions:
        prepare(corruptions)  # refuses before anything is loaded
    evaluation = open_evaluation(run_or_weights, options)
    classifiers = _classifiers(run_or_weights, options, evaluation)
    if corruptions:
        for one in classifiers:
            require_image_size(one.network.input.image_size, what=f"the {one.role}'s view")
    corrupted = [
        corruption_errors(one, corruptions, severities, seed=options.seed, folder=evaluation.output)
        for one in classifiers
        if corruptions
    ]
    result = RobustnessResult(corrupted)
    for one, found in zip(classifiers, corrupted, strict=False):
        result.metrics.update(found.metrics())
        result.notes.extend(_notes(one, found))
    if corrupted:
        result.notes.append(_ON_THE_FLY)
    evaluation.keep(result.metrics)
    return result


def _wanted(options: RobustnessOptions) -> tuple[Sequence[str], Sequence[int]]:
    """Return corruptions and severities.

    Raises:
        DistillError: One of them is unknown, or another number is out of its range.
    """
    if options.seed < 0:
        raise DistillError(f"the seed is {options.seed}; it must be at least 0")
    if options.num_images is not None and options.num_images < 1:
        raise DistillError(f"--num-images is {options.num_images}; it must be at least 1")
    severities = options.severities or SEVERITIES
    if tuple(options.corruptions) == (NONE,):
        return (), severities
    corruptions = options.corruptions or CORRUPTIONS
    require_corruptions(corruptions, severities)
    return corruptions, severities


def _classifiers(
    run_or_weights: Path, options: RobustnessOptions, evaluation: Evaluation
) -> list[FrozenClassifier]:
    evaluator = evaluation.evaluator
    reason = evaluator.why_not()
    if reason is not None:
        raise DistillError(reason)
    index = _sample(evaluator.val_index, options)
    networks = {"student": evaluation.network}
    teacher = _teacher(run_or_weights, options)
    if teacher is not None:
        networks["teacher"] = place(teacher, evaluator.device)
    return [
        FrozenClassifier(role, network, evaluator, options.head, index)
        for role, network in networks.items()
    ]


def _sample(index: np.ndarray, options: RobustnessOptions) -> np.ndarray:
    number = options.num_images
    if number is None:
        return index
    if number > len(index):
        raise DistillError(
            f"--num-images is {number}, there are {len(index)} validation images; leave it out to "
            "take all of them"
        )
    drawn = np.random.default_rng(options.seed).choice(index, number, replace=False)
    return np.sort(drawn)


def _teacher(run_or_weights: Path, options: RobustnessOptions) -> EmbeddingNetwork | None:
    """Load the teacher that was asked for, else the one of the run; None without."""
    given = (options.teacher, options.teacher_weights, options.teacher_image_size)
    if options.no_teacher:
        if any(one is not None for one in given):
            raise DistillError("--no-teacher leaves the teacher out; leave out --teacher... or it")
        return None
    if options.teacher is not None:
        return load_teacher_of(TeacherOptions(*given))
    if any(one is not None for one in given):
        raise DistillError(
            "--teacher-weights and --teacher-image-size go with --teacher; name the teacher, too"
        )
    if not (run_or_weights / "config.yaml").exists():
        return None
    run = read_config(run_or_weights)
    if run.get("teacher") is None:  # a run of pre-training has none
        return None
    weights = run.get("teacher_weights")
    try:
        return load_teacher_of(
            TeacherOptions(run["teacher"], weights and Path(weights), run.get("teacher_image_size"))
        )
    except DistillError as error:
        raise DistillError(f"the run's teacher: {error}; or pass --no-teacher") from error


def _notes(classifier: FrozenClassifier, found: CorruptionResult) -> list[str]:
    """Return what to know about the numbers of one network."""
    role, size = classifier.role, classifier.network.input.image_size
    notes = [f"{role}: {found.definition}"]
    if size != PUBLISHED_IMAGE_SIZE:
        notes.append(
            f"{role}: corrupted at {size} px, by the strengths that are meant for "
            f"{PUBLISHED_IMAGE_SIZE} px"
        )
    if found.why_no_mce is not None:
        notes.append(f"{role}: no mCE, {found.why_no_mce}")
    return notes
