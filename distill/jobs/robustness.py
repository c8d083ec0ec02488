"""Measures a trained student, and its teacher beside it, on images unlike those of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.corruptions import (
    CORRUPTIONS,
    PUBLISHED_IMAGE_SIZE,
    SEVERITIES,
    prepare,
    require_corruptions,
    require_image_size,
)
from distill.errors import DistillError
from distill.jobs.corruption_errors import CorruptionResult, corruption_errors
from distill.jobs.evaluator import Evaluator
from distill.jobs.frozen_classifier import FrozenClassifier
from distill.jobs.measurement import Evaluation, open_evaluation
from distill.jobs.natural_shifts import ShiftOptions, ShiftRow, measure_shifts, open_shifts
from distill.jobs.network_cache import NetworkCache
from distill.jobs.robustness_options import RobustnessOptions
from distill.jobs.teacher_beside import named_teacher, teacher_cache

NONE = "none"
_ON_THE_FLY = "corrupted on the fly: near, but not the same as, the published ImageNet-C JPEG files"


@dataclass(frozen=True)
class RobustnessResult:
    """What was measured.

    Attributes:
        corrupted: Under corruption, the student first.
        shifts: On images from elsewhere, the student first.
        metrics: What was added to metrics.json.
        notes: What a reader of the numbers must know.
    """

    corrupted: list[CorruptionResult] = field(default_factory=list)
    shifts: list[ShiftRow] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add_corrupted(self, found: CorruptionResult, notes: Sequence[str]) -> None:
        """Add what a network does under corruption."""
        self.corrupted.append(found)
        self.metrics.update(found.metrics())
        self.notes.extend(notes)

    def add_shifts(self, rows: Sequence[ShiftRow]) -> None:
        """Add what a network does on images from elsewhere."""
        self.shifts.extend(rows)
        for row in rows:
            self.metrics.update(row.metrics())


def evaluate_robustness(run_or_weights: Path, options: RobustnessOptions) -> RobustnessResult:
    """Measure a trained student; what robustness.json knows already is not measured again.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with
            `options.student`.
        options: How to measure.

    Returns:
        Errors by network, and the metrics `robustness_mean_error`, `robustness_clean_error`,
        `robustness_gap` and, where it is defined, `robustness_mce`; the teacher's start with
        `teacher_`. For every set of --shifted and --frames its accuracies, see `measure_shifts`.

    Raises:
        DistillError: No such run, weights that do not fit, no labels, no validation images, an
            unknown corruption, or the package that corrupts is not installed.
    """
    corruptions, severities = _wanted(options)
    if corruptions:
        prepare([])  # refuses before anything is loaded
    evaluation = open_evaluation(run_or_weights, options)
    classifiers = _classifiers(run_or_weights, options, evaluation)
    given = ShiftOptions(options.shifted, options.class_map, options.frames, options.frames_k)
    shifts = open_shifts(given, evaluation.evaluator.data.train)
    if corruptions:
        for one in classifiers:
            require_image_size(one.network.input.image_size, what=f"the {one.role}'s view")
    result = RobustnessResult(notes=[*shifts.notes(), *([_ON_THE_FLY] if corruptions else [])])
    while classifiers:  # the embeddings of one make room for those of the next
        one = classifiers.pop(0)
        if corruptions:
            found = corruption_errors(
                one, corruptions, severities, seed=options.seed, folder=evaluation.output
            )
            result.add_corrupted(found, _notes(one, found))
        result.add_shifts(measure_shifts(one, shifts))
    metrics = evaluation.named(result.metrics)
    evaluation.keep(metrics)
    defined = {name: value for name, value in metrics.items() if value is not None}
    return replace(result, metrics=defined)


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
        if not options.shifted and options.frames is None:
            raise DistillError(
                "--corruptions none leaves nothing to measure; add --shifted or --frames, or name "
                "corruptions"
            )
        return (), severities
    corruptions = options.corruptions or CORRUPTIONS
    require_corruptions(corruptions, severities)
    return corruptions, severities


def _classifiers(
    run_or_weights: Path, options: RobustnessOptions, evaluation: Evaluation
) -> list[FrozenClassifier]:
    evaluation.require_measurable()
    evaluator = evaluation.evaluator
    index = _sample(evaluator.val_index, options)
    caches = [evaluation.cache]
    teacher = _teacher_beside(run_or_weights, options, evaluator)
    if teacher is not None:
        caches.append(teacher)
    return [FrozenClassifier(cache, options.head, index) for cache in caches]


def _teacher_beside(
    run_or_weights: Path, options: RobustnessOptions, evaluator: Evaluator
) -> NetworkCache | None:
    """Load the teacher that was asked for, else the one of the run, if there is one."""
    given = (options.teacher, options.teacher_weights, options.teacher_image_size)
    if options.no_teacher:
        if any(one is not None for one in given):
            raise DistillError("--no-teacher leaves the teacher out; leave out --teacher... or it")
        return None
    teacher = named_teacher(run_or_weights, options)
    if teacher is None:
        return None
    try:
        return teacher_cache(teacher, evaluator)
    except DistillError as error:
        if options.teacher is not None:
            raise
        raise DistillError(f"the run's teacher: {error}; or pass --no-teacher") from error


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
