"""Errors under corruption, the mean corruption error (mCE), and the file that keeps the errors.

Source: Hendrycks & Dietterich (ICLR 2019), section 4. The corruption error of a corruption is the
sum of the errors at its five severities over the same sum for AlexNet; mCE is its mean over the
fifteen corruptions, so that AlexNet scores 1. Errors are fractions of 1; the paper prints percent.
AlexNet's errors are those of ImageNet's 1,000 classes at 224 px: mCE is defined nowhere else.

As in the published set, images are resized and cropped first and corrupted then. A corruption
depends on (seed, corruption, severity, image) alone, not on the order or number of loader
processes, and is the same for all networks with the same crop.

Errors are written to robustness.json as they are measured, so that a run can be continued:

    {KEY: {"network": "student", "settings": {...}, "clean_error": 0.2,
           "errors": {"fog": {"1": 0.3, ...}, ...}}, ...}

KEY is a hash of the settings, which hold everything that the errors depend on: weights, input,
head, seed, images, labels, precision and the package that corrupts. Other settings are other
entries; the last entry of a network is the newest one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import TypedDict

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
from distill.files import atomic_write, file_lock
from distill.models.weights import module_key
from distill.parsing import checked, parse_json

ROBUSTNESS_FILE = "robustness.json"

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
    """Return the mean over corruptions of `corruption_means`.

    Raises:
        DistillError: There are none.
    """
    if not errors:
        raise DistillError(
            "no corruption was measured and a mean needs at least one; name one or more"
        )
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
            f"mCE needs all fifteen corruptions at five severities and {missing[0]} is missing; "
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
        """Seed and number for the loader, which adds the image's index."""
        position = CORRUPTIONS.index(self.corruption)
        return self.seed, position * len(SEVERITIES) + self.severity - 1

    def build(self) -> View:
        """Return the function from an image to the view; it uses torch's generator."""
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


class Entry(TypedDict):
    """One network under one setting in the file; see `RobustnessRecord`."""

    network: str
    settings: dict[str, Any]
    clean_error: float | None
    errors: dict[str, dict[str, float]]


@dataclass
class RobustnessRecord:
    """The measured errors of one network under one setting.

    Attributes:
        folder: Of the file; None: nothing is kept.
        network: `student` or `teacher`.
        settings: Everything that the errors depend on, as JSON.
        clean_error: None until it is measured.
        errors: By corruption and severity, as far as measured.
    """

    folder: Path | None
    network: str
    settings: dict[str, Any]
    clean_error: float | None = None
    errors: dict[str, dict[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        entry = None if self.folder is None else read_robustness(self.folder).get(self.key)
        if entry is None:
            return
        self.clean_error = entry["clean_error"]
        self.errors = {
            name: {int(severity): error for severity, error in by.items()}
            for name, by in entry["errors"].items()
        }

    @property
    def key(self) -> str:
        """Hash of the settings and of the network's role."""
        content = json.dumps([self.network, self.settings], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def has(self, corruption: str, severity: int) -> bool:
        """Return whether an error is known."""
        return severity in self.errors.get(corruption, {})

    def set_clean(self, error: float) -> None:
        """Keep the error on clean images."""
        self.clean_error = error
        self._write()

    def set(self, corruption: str, severity: int, error: float) -> None:
        """Keep an error, in the standard order whatever the order of measuring."""
        self.errors.setdefault(corruption, {})[severity] = error
        self.errors = {
            name: dict(sorted(self.errors[name].items()))
            for name in CORRUPTIONS
            if name in self.errors
        }
        self._write()

    def _write(self) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.folder / ROBUSTNESS_FILE):
            everything = read_robustness(self.folder)
            everything.pop(self.key, None)  # the newest one comes last
            everything[self.key] = {
                "network": self.network,
                "settings": self.settings,
                "clean_error": self.clean_error,
                "errors": {
                    name: {str(severity): error for severity, error in by.items()}
                    for name, by in self.errors.items()
                },
            }
            atomic_write(
                self.folder / ROBUSTNESS_FILE, (json.dumps(everything, indent=2) + "\n").encode()
            )


def read_robustness(folder: Path) -> dict[str, Entry]:
    """Read robustness.json of a folder; empty when there is none yet.

    Raises:
        DistillError: When the file is damaged.
    """
    file = folder / ROBUSTNESS_FILE
    if not file.exists():
        return {}
    try:
        content = checked(parse_json(file.read_text(encoding="utf-8")), dict[str, Entry])
        for entry in content.values():
            for severity in (one for by in entry["errors"].values() for one in by):
                if not severity.isdecimal():
                    raise ValueError(f"a severity is not an integer: {severity[:20]!r}")
    except ValueError as error:
        raise DistillError(
            f"{file} is damaged ({error}); move it away and measure again"
        ) from error
    return content


@dataclass(frozen=True)
class CorruptionResult:
    """Errors of one network under corruption.

    Attributes:
        role: `student` or `teacher`.
        clean_error: On the same images without corruption.
        errors: By corruption and severity, as requested.
        why_no_mce: Why mCE is not defined; None when it is.
        definition: Images, corruptions and head, in words.
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
        """Return remarks on the numbers of a network with views of a size."""
        notes = [f"{self.role}: {self.definition}"]
        if image_size != PUBLISHED_IMAGE_SIZE:
            notes.append(
                f"{self.role}: corrupted at {image_size} px, with the strengths defined for "
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
        folder: Of robustness.json, whose errors are not measured again; None: nothing is kept.

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
    """Return everything that the errors depend on, as JSON."""
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
