"""Measures a network under corruption, one pass over the validation images for each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.corruptions import CORRUPTIONS, prepare, require_image_size
from distill.data.images import Images
from distill.evaluation.corrupted_view import CorruptedView
from distill.evaluation.corruption_error import (
    Errors,
    corruption_means,
    mean_corruption_error,
    mean_error,
    why_no_mce,
)
from distill.jobs.frozen_classifier import FrozenClassifier
from distill.jobs.robustness_record import RobustnessRecord
from distill.weights_hash import weights_hash


@dataclass(frozen=True)
class CorruptionResult:
    """What one network does under corruption.

    Attributes:
        role: `student` or `teacher`.
        clean_error: On the same images without corruption.
        errors: By corruption and severity, those that were asked for.
        why_no_mce: Why mCE is not defined; None when it is.
        definition: What the numbers are of, in words.
    """

    role: str
    clean_error: float
    errors: Errors
    why_no_mce: str | None
    definition: str

    def means(self) -> dict[str, float]:
        """Return the mean error over severities by corruption."""
        return corruption_means(self.errors)

    def metrics(self) -> dict[str, float | str | None]:
        """Return the numbers for metrics.json by name; the teacher's with a prefix.

        mCE is None where it is not defined, so that one of an earlier definition does not stay.
        """
        mean, has_mce = mean_error(self.errors), self.why_no_mce is None
        found: dict[str, float | str | None] = {
            "robustness_definition": self.definition,
            "robustness_clean_error": self.clean_error,
            "robustness_mean_error": mean,
            "robustness_gap": mean - self.clean_error,
            "robustness_mce": mean_corruption_error(self.errors) if has_mce else None,
        }
        prefix = "teacher_" if self.role == "teacher" else ""
        return {prefix + name: value for name, value in found.items()}


def corruption_errors(
    classifier: FrozenClassifier,
    corruptions: Sequence[str],
    severities: Sequence[int],
    *,
    seed: int,
    folder: Path | None,
) -> CorruptionResult:
    """Measure a network, leaving out what robustness.json knows.

    Args:
        classifier: The network, its head and the images.
        corruptions: Which.
        severities: How strong.
        seed: Of the corruptions.
        folder: Where robustness.json lies; None: nothing is kept.

    Raises:
        DistillError: The package that corrupts is not installed, the network's images are too
            small, or robustness.json is damaged.
    """
    size = classifier.network.input.image_size
    require_image_size(size, what=f"the {classifier.role}'s view")
    record = RobustnessRecord(folder, classifier.role, _settings(classifier, seed))
    if record.clean_error is None:
        record.set_clean(classifier.error())
    wanted = list(product(corruptions, severities))
    missing = [pair for pair in wanted if not record.has(*pair)]
    prepare([corruption for corruption, _ in missing])
    for corruption, severity in missing:
        view = CorruptedView(classifier.network.input, corruption, severity, seed)
        what = f"{corruption} {severity} ({wanted.index((corruption, severity)) + 1}/{len(wanted)})"
        record.set(corruption, severity, classifier.error(view, description=what))
    assert record.clean_error is not None
    errors = {name: {s: record.errors[name][s] for s in severities} for name in corruptions}
    reason = why_no_mce(errors, classifier.evaluator.data.train.classes, size)
    return CorruptionResult(
        classifier.role,
        record.clean_error,
        errors,
        reason,
        _definition(classifier, corruptions, severities),
    )


def _definition(
    classifier: FrozenClassifier, corruptions: Sequence[str], severities: Sequence[int]
) -> str:
    complete = len(corruptions) == len(CORRUPTIONS)
    of = f"all {len(corruptions)} corruptions" if complete else ", ".join(corruptions)
    strength = "severity" if len(severities) == 1 else "severities"
    return (
        f"errors under {of} at {strength} {', '.join(map(str, severities))} of "
        f"{len(classifier.val_index):,} images of {classifier.val.name}, head "
        f"{classifier.head_name}"
    )


def _settings(classifier: FrozenClassifier, seed: int) -> dict[str, Any]:
    """Return all that errors depend on, as JSON."""
    network, evaluator = classifier.network, classifier.evaluator
    given = {**vars(network.input)}
    return {
        "network": network.spec.name,
        "weights": weights_hash(network),
        "input": {n: list(v) if isinstance(v, tuple) else v for n, v in given.items()},
        "head": classifier.head_name,
        "seed": seed,
        "precision": evaluator.precision,
        "embeddings": classifier.cache.dtype,
        "corrupted_by": prepare([]),
        "train": _describe(evaluator.data.train, evaluator.train_index),
        "val": _describe(classifier.val, classifier.val_index),
        "num_images": len(classifier.val_index),
    }


def _describe(images: Images, index: np.ndarray) -> str:
    """Return the set's name and a hash of the images at `index` with their labels."""
    assert images.labels is not None
    digest = hashlib.sha256(images.fingerprint().encode())
    for numbers in (index, images.labels[index]):
        digest.update(np.ascontiguousarray(numbers, dtype="<i8").tobytes())
    return f"{images.name} {digest.hexdigest()[:16]}"
