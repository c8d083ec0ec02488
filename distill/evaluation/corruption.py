"""Errors under corruption, and the mean corruption error (mCE).

Source: Hendrycks & Dietterich (ICLR 2019), section 4. The corruption error of a corruption is the
sum of the errors at its five severities over the same sum for AlexNet, mCE its mean over the
fifteen corruptions, so that AlexNet scores 1. Errors are fractions of 1; the paper prints percent.
AlexNet's errors are those of ImageNet's 1,000 classes at 224 px: nowhere else is mCE defined.

As in the published set, images are resized and cropped first and corrupted then. A corruption
depends on (seed, corruption, severity, image) alone, not on the order or number of loaders, and is
the same for all networks that look at the same crop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.data.corruptions import (
    CORRUPTIONS,
    PUBLISHED_IMAGE_SIZE,
    SEVERITIES,
    corrupt,
    prepare,
)
from distill.data.images import Images
from distill.data.shifted import is_imagenet
from distill.data.views import View
from distill.embeddings.embed import NetworkView
from distill.errors import DistillError
from distill.evaluation.frozen_classifier import FrozenClassifier
from distill.evaluation.robustness_record import RobustnessRecord
from distill.models.weights import module_key

Errors = Mapping[str, Mapping[int, float]]
"""Error by corruption and severity."""

ALEXNET_ERRORS = dict(
    zip(
        CORRUPTIONS,
        (
            *(0.886428, 0.894468, 0.922640, 0.819880, 0.826268),
            *(0.785948, 0.798360, 0.866816, 0.826572, 0.819324),
            *(0.564592, 0.853204, 0.646056, 0.717840, 0.606500),
        ),
        strict=True,
    )
)
"""AlexNet's error by corruption, the mean over the five severities."""


def corruption_means(errors: Errors) -> dict[str, float]:
    """Return the mean error over the severities of every corruption, in the order given."""
    return {name: float(np.mean(list(by.values()))) for name, by in errors.items()}


def mean_error(errors: Errors) -> float:
    """Return the mean over corruptions of `corruption_means`: every corruption counts alike.

    Raises:
        DistillError: There are none.
    """
    if not errors:
        raise DistillError("no corruption was measured, a mean needs one; name one or more")
    return float(np.mean(list(corruption_means(errors).values())))


def mean_corruption_error(errors: Errors) -> float:
    """Return mCE, 1 for AlexNet.

    Args:
        errors: Of all fifteen corruptions at all five severities, on ImageNet at 224 px.

    Raises:
        DistillError: One is missing.
    """
    missing = [
        f"{name} at severity {severity}"
        for name in CORRUPTIONS
        for severity in SEVERITIES
        if severity not in errors.get(name, {})
    ]
    if missing:
        raise DistillError(
            f"mCE needs all fifteen corruptions at five severities, {missing[0]} is missing; "
            "leave out --corruptions and --severities"
        )
    means = corruption_means(errors)
    return float(np.mean([means[name] / ALEXNET_ERRORS[name] for name in CORRUPTIONS]))


def why_no_mce(errors: Errors, classes: tuple[str, ...] | None, image_size: int) -> str | None:
    """Return why mCE is not defined, None when it is.

    Args:
        errors: What was measured.
        classes: Names of the training classes.
        image_size: Side of the network's view in pixels.
    """
    if classes is None or not is_imagenet(classes):
        return "AlexNet's errors are known for ImageNet's 1,000 classes only"
    if image_size != PUBLISHED_IMAGE_SIZE:
        return f"AlexNet's errors are known for {PUBLISHED_IMAGE_SIZE} px only, not {image_size} px"
    complete = all(set(SEVERITIES) <= set(errors.get(name, {})) for name in CORRUPTIONS)
    return None if complete else "it needs all fifteen corruptions at five severities"


_MAX_SEED = 2**32


@dataclass(frozen=True)
class CorruptedView(NetworkView):
    """One corruption of the evaluation view of every image.

    Attributes:
        input: Of the network; its side is at least 32.
        corruption: One of `CORRUPTIONS`.
        severity: From 1 to 5.
        seed: At least 0.
    """

    corruption: str
    severity: int
    seed: int

    @property
    def draw(self) -> tuple[int, int]:
        """Seed and number for the loader, which mixes the image in."""
        position = CORRUPTIONS.index(self.corruption)
        return self.seed, position * len(SEVERITIES) + self.severity - 1

    def build(self) -> View:
        """Return the function from an image to the view; it draws from torch's generator."""
        return _Corrupted(super().build(), self.corruption, self.severity)


@dataclass(frozen=True)
class _Corrupted:
    clean: View
    corruption: str
    severity: int

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = self.clean(image).permute(1, 2, 0).contiguous().numpy()
        seed = int(torch.randint(_MAX_SEED, ()))
        corrupted = corrupt(pixels, self.corruption, self.severity, seed=seed)
        return torch.from_numpy(corrupted).permute(2, 0, 1).contiguous()


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

    @property
    def mce(self) -> float | None:
        """mCE; None where it is not defined."""
        return None if self.why_no_mce else mean_corruption_error(self.errors)

    def metrics(self) -> dict[str, Any]:
        """Return the numbers by name; the teacher's with a prefix."""
        mean = mean_error(self.errors)
        numbers = {
            "robustness_definition": self.definition,
            "robustness_clean_error": self.clean_error,
            "robustness_mean_error": mean,
            "robustness_gap": mean - self.clean_error,
            "robustness_mce": self.mce,
        }
        prefix = "teacher_" if self.role == "teacher" else ""
        return {prefix + name: value for name, value in numbers.items()}

    def notes(self, image_size: int) -> list[str]:
        """Return what to know about the numbers of a network with views of a size."""
        notes = [f"{self.role}: {self.definition}"]
        if image_size != PUBLISHED_IMAGE_SIZE:
            notes.append(
                f"{self.role}: corrupted at {image_size} px, by the strengths that are meant for "
                f"{PUBLISHED_IMAGE_SIZE} px"
            )
        if self.why_no_mce is not None:
            notes.append(f"{self.role}: no mCE, {self.why_no_mce}")
        return notes


def corruption_errors(
    classifier: FrozenClassifier,
    corruptions: Sequence[str],
    severities: Sequence[int],
    *,
    seed: int,
    folder: Path | None,
) -> CorruptionResult:
    """Measure a network under corruption, one pass over the images for each.

    Args:
        classifier: The network, its head and the images.
        corruptions: Which.
        severities: How strong.
        seed: Of the corruptions.
        folder: Where robustness.json lies, whose errors are not measured again; None: nothing is
            kept.

    Raises:
        DistillError: The package that corrupts is not installed, or robustness.json is damaged.
    """
    network, val = classifier.network, classifier.val
    record = RobustnessRecord(folder, classifier.role, _settings(classifier, seed))
    if record.clean_error is None:
        record.set_clean(classifier.error())
    wanted = list(product(corruptions, severities))
    missing = [pair for pair in wanted if not record.has(*pair)]
    prepare([corruption for corruption, _ in missing])
    for corruption, severity in missing:
        view = CorruptedView(network.input, corruption, severity, seed)
        what = f"{corruption} {severity} ({wanted.index((corruption, severity)) + 1}/{len(wanted)})"
        record.set(corruption, severity, classifier.error(view, description=what))
    assert record.clean_error is not None
    errors = {name: {s: record.errors[name][s] for s in severities} for name in corruptions}
    is_complete = len(corruptions) == len(CORRUPTIONS)
    of = f"all {len(corruptions)} corruptions" if is_complete else ", ".join(corruptions)
    strength = "severity" if len(severities) == 1 else "severities"
    return CorruptionResult(
        classifier.role,
        record.clean_error,
        errors,
        why_no_mce(errors, classifier.embedder.data.train.classes, network.input.image_size),
        f"errors under {of} at {strength} {', '.join(map(str, severities))} of "
        f"{len(classifier.val_index):,} images of {val.name}, head {classifier.head_name}",
    )


def _settings(classifier: FrozenClassifier, seed: int) -> dict[str, Any]:
    """Return all that errors depend on, as JSON."""
    network, embedder = classifier.network, classifier.embedder
    given = vars(network.input)
    return {
        "network": network.spec.name,
        "weights": module_key(network),
        "input": {n: list(v) if isinstance(v, tuple) else v for n, v in given.items()},
        "head": classifier.head_name,
        "seed": seed,
        "precision": embedder.precision,
        "embeddings": classifier.cache.dtype,
        "corrupted_by": prepare([]),
        "train": _describe(embedder.data.train, embedder.train_index),
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
