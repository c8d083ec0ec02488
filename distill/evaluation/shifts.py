"""Accuracy where several classes may be right, and on groups of neighboring frames.

Sources: Hendrycks et al., "Natural Adversarial Examples" (CVPR 2021) and "The Many Faces of
Robustness" (ICCV 2021) for predictions among the classes that are present only; Shankar et al.,
"Do Image Classifiers Generalize Across Time?" (arXiv 1906.02168) for pm-k.

Shapes: M images, F rows of accepted classes, C training classes, R frames, A anchors.

Measures a network on images that nature, not a program, has shifted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.data.images import Images
from distill.data.shifted import (
    ClassMap,
    FrameGroups,
    ShiftedImages,
    open_shifted,
    read_class_map,
    read_frame_groups,
)
from distill.errors import DistillError
from distill.evaluation.frozen_classifier import FrozenClassifier


def is_right(predicted: np.ndarray, row: np.ndarray, accepted: np.ndarray) -> np.ndarray:
    """Say of every prediction whether it is among the classes that are right.

    Args:
        predicted: (M,) labels.
        row: (M,) which row of `accepted` belongs to the image.
        accepted: bool (F, C).

    Returns:
        bool (M,).
    """
    return accepted[row, predicted]


@dataclass(frozen=True)
class FrameAccuracy:
    """Accuracy on groups of frames.

    Attributes:
        anchor: Share of anchors that are right.
        pm_k: Share of anchors that are right with all their neighbors within k frames.
        num_anchors: A.
    """

    anchor: float
    pm_k: float
    num_anchors: int


def frame_accuracy(
    right: np.ndarray, anchor: np.ndarray, offset: np.ndarray, *, k: int
) -> FrameAccuracy:
    """Return the accuracy on anchors, and the one that all their neighbors must confirm.

    Args:
        right: bool (R,), whether a frame is right.
        anchor: (R,) number of the frame's anchor; anchors without a frame at offset 0 do not count.
        offset: (R,) frames from the anchor, 0 for the anchor itself.
        k: Largest distance of a neighbor that counts; at least 0.

    Raises:
        DistillError: k below 0, or no anchor.
    """
    if k < 0:
        raise DistillError(f"k is {k} frames; it must be at least 0")
    anchors = anchor[offset == 0]
    if len(anchors) == 0:
        raise DistillError("no anchor can be read; name other frames")
    nearby_wrong = ~right & (np.abs(offset) <= k)
    num_wrong = np.bincount(anchor, weights=nearby_wrong)
    return FrameAccuracy(
        anchor=float(right[offset == 0].mean()),
        pm_k=float((num_wrong[anchors] == 0).mean()),
        num_anchors=len(anchors),
    )


@dataclass(frozen=True)
class ShiftOptions:
    """Which images from elsewhere.

    Attributes:
        shifted: Folders of class folders.
        class_map: What their names and the labels of frames stand for.
        frames: CSV file of groups of frames.
        frames_k: Largest distance of a neighbor that counts.
    """

    shifted: tuple[Path, ...]
    class_map: Path | None
    frames: Path | None
    frames_k: int


@dataclass(frozen=True)
class NaturalShifts:
    """The images from elsewhere, open.

    Attributes:
        folders: Each a set of images.
        frames: Groups of frames, if there are any.
        frames_k: Largest distance of a neighbor that counts.
    """

    folders: list[ShiftedImages]
    frames: FrameGroups | None
    frames_k: int

    def notes(self) -> list[str]:
        """Return what to know about the numbers."""
        return [
            f"{one.name}: {one.num_left_out} class folders stand for no training class and are "
            "left out"
            for one in self.folders
            if one.num_left_out
        ]


@dataclass(frozen=True)
class ShiftRow:
    """One number of one network on one set.

    Attributes:
        role: `student` or `teacher`.
        measure: What it is, in words.
        metric: Its name in metrics.json.
        plain: Accuracy of predictions among all training classes.
        restricted: Accuracy of predictions among the classes of the set.
    """

    role: str
    measure: str
    metric: str
    plain: float
    restricted: float

    def metrics(self) -> dict[str, float]:
        """Return the numbers for metrics.json by name; the teacher's with a prefix."""
        name = ("teacher_" if self.role == "teacher" else "") + self.metric
        return {name: self.plain, f"{name}_restricted": self.restricted}


def open_shifts(options: ShiftOptions, train: Images) -> NaturalShifts:
    """Open the images from elsewhere.

    Args:
        options: Which.
        train: Training images, whose classes are predicted.

    Raises:
        DistillError: What is not there or not understood; two folders of one name.
    """
    if options.frames_k < 0:
        raise DistillError(f"--frames-k is {options.frames_k}; it must be at least 0")
    if options.class_map is not None and not options.shifted and options.frames is None:
        raise DistillError("--class-map goes with --shifted or --frames; leave it out or add one")
    classes = train.classes or ()
    class_map: ClassMap | None = None
    if options.class_map is not None:
        class_map = read_class_map(Path(options.class_map))
    folders = [open_shifted(Path(folder), classes, class_map) for folder in options.shifted]
    names = [_metric_name(one.name) for one in folders]
    if len(set(names)) < len(names):
        raise DistillError(
            f"two folders of --shifted are called alike ({', '.join(names)}); metrics.json needs a "
            "name for each, measure them one after the other with different --output"
        )
    frames = None
    if options.frames is not None:
        frames = read_frame_groups(Path(options.frames), classes, class_map)
    return NaturalShifts(folders, frames, options.frames_k)


def measure_shifts(classifier: FrozenClassifier, shifts: NaturalShifts) -> list[ShiftRow]:
    """Measure a network on images from elsewhere.

    Returns:
        For a folder its accuracy, and that on the clean validation images of its classes where
        there are any; for frames the accuracy on anchors and pm-k.

    Raises:
        DistillError: No training image is of a set's classes, or nothing can be read.
    """
    rows = [row for one in shifts.folders for row in _folder_rows(classifier, one)]
    return rows + (_frame_rows(classifier, shifts.frames, shifts.frames_k) if shifts.frames else [])


def _folder_rows(classifier: FrozenClassifier, shifted: ShiftedImages) -> list[ShiftRow]:
    head = classifier.head
    found = classifier.embed(shifted.images, shifted.index, description=shifted.name)
    if len(found.labels) == 0:
        raise DistillError(f"no image of {shifted.name} can be read; name other images")
    present, metric = shifted.present, f"robustness_{_metric_name(shifted.name)}_accuracy"

    def accuracy(among: np.ndarray | None) -> float:
        predicted = head.predict(found.features, among=among)
        return float(is_right(predicted, found.labels, shifted.accepted).mean())

    rows = [ShiftRow(classifier.role, shifted.name, metric, accuracy(None), accuracy(present))]
    clean = classifier.clean
    of_these = np.isin(clean.labels, present)
    if of_these.any():
        features, labels = clean.features[of_these], clean.labels[of_these]
        on_clean = [
            float(np.mean(head.predict(features, among=among) == labels))
            for among in (None, present)
        ]
        what = f"{shifted.name}: clean, its classes"
        rows.append(ShiftRow(classifier.role, what, f"{metric}_clean", *on_clean))
    return rows


def _frame_rows(classifier: FrozenClassifier, groups: FrameGroups, k: int) -> list[ShiftRow]:
    head, images = classifier.head, groups.images
    counts = groups.accepted.any(axis=1)
    used = np.unique(groups.frame[counts])
    found = classifier.embed(images, used, description=groups.name)
    counts &= np.isin(groups.frame, found.index)
    place = np.searchsorted(found.index, groups.frame[counts])
    present = np.flatnonzero(groups.accepted.any(axis=0))

    def accuracy(among: np.ndarray | None) -> FrameAccuracy:
        predicted = head.predict(found.features, among=among)[place]
        right = is_right(predicted, np.flatnonzero(counts), groups.accepted)
        return frame_accuracy(right, groups.anchor[counts], groups.offset[counts], k=k)

    plain, restricted = accuracy(None), accuracy(present)
    metric = f"robustness_{_metric_name(groups.name)}"
    what = f"{groups.name}, {plain.num_anchors} anchors"
    return [
        ShiftRow(classifier.role, what, f"{metric}_anchor", plain.anchor, restricted.anchor),
        ShiftRow(
            classifier.role,
            f"{what}: pm-{k}",
            f"{metric}_pm{k}",
            plain.pm_k,
            restricted.pm_k,
        ),
    ]


def _metric_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
