"""Transfers a trained student to PASCAL VOC, or to a dataset in its layout.

Classification leaves the student as it is; detection fine-tunes a copy of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from distill.data.voc import VocImages, open_voc
from distill.errors import DistillError
from distill.evaluation.average_precision import RULES, Rule, mean_average_precision
from distill.evaluation.detection import (
    DetectionPass,
    FineTuning,
    detect,
    detection_aps,
    fine_tune,
)
from distill.evaluation.detector import build_detector
from distill.evaluation.voc_classification import Classifier, classification_aps, classify
from distill.jobs.measurement import Evaluation, MeasurementOptions, open_evaluation

Task = Literal["classification", "detection"]


@dataclass(frozen=True)
class VocOptions(MeasurementOptions):
    """How `distill voc` measures."""

    data: str | None = None
    """A VOCdevkit folder, a year's folder in it (VOC2007), or any folder in that layout."""
    task: Task = "classification"
    """classification: linear classifiers on the frozen student; detection: Faster R-CNN on it, all
    layers fine-tuned."""
    train_split: str = "trainval"
    """List in ImageSets/Main that is learnt from."""
    test_split: str = "test"
    """List in ImageSets/Main that is measured on."""
    classifier: Classifier = "svm"
    """Classification. svm: squared hinge loss; logistic: logistic loss."""
    seed: int = 0
    """Of folds, new layers, order and mirroring."""
    steps: int = 18_000
    """Detection: steps of fine-tuning."""
    batch_size: int = 8
    """Detection: images a step."""
    learning_rate: float | None = None
    """Detection: peak; None: 0.02 x batch size / 16."""
    detector_size: int = 600
    """Detection: shorter side in pixels that images are scaled to, unless the longer one would
    exceed 5/3 of it."""


@dataclass(frozen=True)
class VocMeasurement:
    """Average precisions of one task.

    Attributes:
        name: What the metrics begin with, `voc_detection` for example.
        classes: C names.
        per_class: By rule (C,), NaN for classes without a test object.
        definition: What the numbers are of, in words.
    """

    name: str
    classes: tuple[str, ...]
    per_class: dict[Rule, np.ndarray]
    definition: str

    def means(self) -> dict[str, float]:
        """Return the mean average precision by both rules, under its names in metrics.json.

        Raises:
            DistillError: No class has a test object.
        """
        return {
            f"{self.name}_map{_SUFFIX[rule]}": mean_average_precision(self.per_class[rule])
            for rule in RULES
        }

    def metrics(self) -> dict[str, Any]:
        """Return what metrics.json receives.

        Means, by class both rules (None: no object), and what they are of.
        """
        by_class = {
            name: {rule: _or_none(self.per_class[rule][i]) for rule in RULES}
            for i, name in enumerate(self.classes)
        }
        described = {f"{self.name}_ap": by_class, f"{self.name}_definition": self.definition}
        return {**self.means(), **described}


_SUFFIX: dict[Rule, str] = {"voc07": "", "area": "_area"}


def measure_voc(run_or_weights: Path, options: VocOptions) -> VocMeasurement:
    """Transfer a trained student, and add what was measured to metrics.json.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with
            `options.student`.
        options: How to measure.

    Returns:
        The average precisions; metrics start with `voc_classification`,
        `voc_classification_logistic` or `voc_detection`.

    Raises:
        DistillError: No such run, weights that do not fit, data that is not in VOC layout or
            damaged, an option out of range, classes that cannot be learnt.
        NonFiniteLossError: The detector's loss is not finite.
    """
    _check(options)
    open_data = partial(open_voc, train_split=options.train_split, test_split=options.test_split)
    evaluation = open_evaluation(run_or_weights, options, open_data=open_data)
    train, test = evaluation.evaluator.data.train, evaluation.evaluator.data.val
    assert isinstance(train, VocImages)
    assert isinstance(test, VocImages)
    if options.task == "detection":
        per_class, name = _detection(evaluation, train, test, options), "voc_detection"
    else:
        per_class, name = _classification(evaluation, train, test, options), "voc_classification"
        name += "" if options.classifier == "svm" else f"_{options.classifier}"
    definition = _definition(train, test, options)
    measurement = VocMeasurement(name, train.object_classes, per_class, definition)
    evaluation.keep(measurement.metrics())
    return measurement


def _definition(train: VocImages, test: VocImages, options: VocOptions) -> str:
    text = f"{len(test):,} images of {test.name}, learnt from {len(train):,} of {train.name}"
    if options.task == "classification":
        return text
    return (
        f"{text} in {options.steps:,} steps of {options.batch_size}, shorter side "
        f"{options.detector_size} px"
    )


def _classification(
    evaluation: Evaluation, train: VocImages, test: VocImages, options: VocOptions
) -> dict[Rule, np.ndarray]:
    learnt, tested = evaluation.cache.stored("train"), evaluation.cache.stored("val")
    found = classify(
        learnt.features[:],
        train.presence()[learnt.index],
        tested.features[:],
        classes=train.object_classes,
        classifier=options.classifier,
        seed=options.seed,
    )
    return classification_aps(found.scores, test.presence()[tested.index])


def _detection(
    evaluation: Evaluation, train: VocImages, test: VocImages, options: VocOptions
) -> dict[Rule, np.ndarray]:
    evaluator = evaluation.evaluator
    torch.manual_seed(options.seed)  # of the new layers
    detector = build_detector(
        evaluation.network, len(train.object_classes), image_size=options.detector_size
    )
    how = evaluator.how(train)
    passing = DetectionPass(evaluator.device, how.num_workers, how.on_bad_images)
    tuning = FineTuning(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    fine_tune(detector, train, evaluator.train_index, tuning, passing)
    return detection_aps(detect(detector, test, evaluator.val_index, passing), test)


def _check(options: VocOptions) -> None:
    """Refuse what cannot work before anything is loaded."""
    if options.data is None:
        raise DistillError("--data is missing: name a VOCdevkit folder, or one in its layout")
    for flag, value, least in (
        ("--steps", options.steps, 1),
        ("--batch-size", options.batch_size, 1),
        ("--detector-size", options.detector_size, 32),
        ("--seed", options.seed, 0),
    ):
        if value < least:
            raise DistillError(f"{flag} is {value}, it must be at least {least}")
    rate = options.learning_rate
    if rate is not None and not 0 < rate < math.inf:
        raise DistillError(f"--learning-rate is {rate}, it must be positive and finite")


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else float(value)
