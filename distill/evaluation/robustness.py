"""Errors under corruption: their mean, and the mean corruption error (mCE).

Source: Hendrycks & Dietterich (ICLR 2019), section 4. The corruption error of a corruption is the
sum of the errors at its five severities over the same sum for AlexNet, mCE its mean over the
fifteen corruptions, so that AlexNet scores 1. Errors are fractions of 1; the paper prints percent.
AlexNet's errors are those of ImageNet's 1,000 classes at 224 px: nowhere else is mCE defined.

What a network is shown of a corrupted image: its evaluation crop, corrupted.

As in the published set, images are resized and cropped first and corrupted then. The corruption
depends on (seed, corruption, severity, image) alone, not on the order or number of loaders, and is
the same for all networks that look at the same crop.

What can be asked of `distill robustness`.

robustness.json: errors under corruption, written as they come, so that a run can be continued.

    {KEY: {"network": "student", "settings": {...}, "clean_error": 0.2,
           "errors": {"fog": {"1": 0.3, ...}, ...}}, ...}

KEY is a hash of the settings, which are all that the errors depend on: weights, input, head, seed,
images, labels, precision and the package that corrupts. Other settings are other entries, and the
last entry of a network is the newest one.

Measures a network under corruption, one pass over the validation images for each.

Measures a trained student, and its teacher beside it, on images unlike those of training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    require_corruptions,
    require_image_size,
)
from distill.data.images import Images
from distill.data.shifted import is_imagenet
from distill.data.views import View
from distill.embeddings.cache import NetworkCache
from distill.embeddings.embed import DatasetEmbedder, NetworkView
from distill.errors import DistillError
from distill.evaluation.base import (
    EvaluationResult,
    ReferenceTeacherOptions,
    Subject,
    open_evaluation,
    reference_teacher,
    teacher_cache,
)
from distill.evaluation.frozen_classifier import FrozenClassifier, HeadName
from distill.evaluation.shifts import ShiftOptions, ShiftRow, measure_shifts, open_shifts
from distill.files import atomic_write, file_lock
from distill.models.weights import weights_hash
from distill.parsing import checked, parse_json

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
class RobustnessOptions(ReferenceTeacherOptions):
    """How `distill robustness` measures."""

    corruptions: tuple[str, ...] = ()
    """Names of ImageNet-C; none given: all fifteen; `none`: none of them."""
    severities: tuple[int, ...] = ()
    """From 1 to 5; none given: all five."""
    head: HeadName = "nn"
    """What predicts from embeddings, fitted on clean training images: nearest neighbor or
    logistic regression."""
    num_images: int | None = None
    """Validation images to corrupt, drawn by the seed; None: all."""
    seed: int = 0
    """Of the drawn images and of the corruptions."""
    no_teacher: bool = False
    """Leave the run's teacher out."""
    shifted: tuple[Path, ...] = ()
    """Folders of class folders of other images: ImageNet-A, -R, -v2, ObjectNet."""
    class_map: Path | None = None
    """JSON or CSV file that says which training classes the names of --shifted and --frames stand
    for; None: they are training classes."""
    frames: Path | None = None
    """CSV file of neighboring video frames: anchor,frame,label and optionally offset."""
    frames_k: int = 10
    """An anchor is right at pm-k if all its neighbors within k frames are."""


FILE = "robustness.json"


class Entry(TypedDict):
    """What the file says of one network under one setting; see `RobustnessRecord`."""

    network: str
    settings: dict[str, Any]
    clean_error: float | None
    errors: dict[str, dict[str, float]]


@dataclass
class RobustnessRecord:
    """What is known of one network under one setting.

    Attributes:
        folder: Where the file lies; None: nothing is kept.
        network: `student` or `teacher`.
        settings: All that the errors depend on, as JSON.
        clean_error: None until it is measured.
        errors: By corruption and severity, as far as they are measured.
    """

    folder: Path | None
    network: str
    settings: dict[str, Any]
    clean_error: float | None = None
    errors: dict[str, dict[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = None if self.folder is None else read_robustness(self.folder).get(self.key)
        if found is None:
            return
        self.clean_error = found["clean_error"]
        self.errors = {
            name: {int(severity): error for severity, error in by.items()}
            for name, by in found["errors"].items()
        }

    @property
    def key(self) -> str:
        """Hash of the settings and of the network's role."""
        content = json.dumps([self.network, self.settings], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def has(self, corruption: str, severity: int) -> bool:
        """Say whether an error is known."""
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
        with file_lock(self.folder / FILE):
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
            atomic_write(self.folder / FILE, (json.dumps(everything, indent=2) + "\n").encode())


def read_robustness(folder: Path) -> dict[str, Entry]:
    """Read robustness.json of a folder; empty when there is none yet.

    Raises:
        DistillError: When the file is damaged.
    """
    file = folder / FILE
    if not file.exists():
        return {}
    try:
        content = checked(parse_json(file.read_text(encoding="utf-8")), dict[str, Entry])
        for entry in content.values():
            for severity in (one for by in entry["errors"].values() for one in by):
                if not severity.isdecimal():
                    raise ValueError(f"a severity is no whole number: {severity[:20]!r}")
    except ValueError as error:
        raise DistillError(
            f"{file} is damaged ({error}); move it away and measure again"
        ) from error
    return content


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
    reason = why_no_mce(errors, classifier.embedder.data.train.classes, size)
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
    network, embedder = classifier.network, classifier.embedder
    given = {**vars(network.input)}
    return {
        "network": network.spec.name,
        "weights": weights_hash(network),
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
    shifts = open_shifts(given, evaluation.embedder.data.train)
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
    return replace(result, metrics=evaluation.keep(EvaluationResult(result.metrics)).metrics)


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
    run_or_weights: Path, options: RobustnessOptions, evaluation: Subject
) -> list[FrozenClassifier]:
    evaluation.require_labels()
    embedder = evaluation.embedder
    index = _sample(embedder.val_index, options)
    caches = [evaluation.cache]
    teacher = _teacher_beside(run_or_weights, options, embedder)
    if teacher is not None:
        caches.append(teacher)
    return [FrozenClassifier(cache, options.head, index) for cache in caches]


def _teacher_beside(
    run_or_weights: Path, options: RobustnessOptions, embedder: DatasetEmbedder
) -> NetworkCache | None:
    """Load the teacher that was asked for, else the one of the run, if there is one."""
    given = (options.teacher, options.teacher_weights, options.teacher_image_size)
    if options.no_teacher:
        if any(one is not None for one in given):
            raise DistillError("--no-teacher leaves the teacher out; leave out --teacher... or it")
        return None
    teacher = reference_teacher(run_or_weights, options)
    if teacher is None:
        return None
    try:
        return teacher_cache(teacher, embedder)
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
