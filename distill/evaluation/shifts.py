"""Accuracy on other datasets with some of the training classes, and on groups of video frames.

Sources: Hendrycks et al., "Natural Adversarial Examples" (CVPR 2021) and "The Many Faces of
Robustness" (ICCV 2021) for predictions among the classes that are present only; Shankar et al.,
"Do Image Classifiers Generalize Across Time?" (arXiv 1906.02168) for pm-k.

Shapes: R frames, C training classes, A anchors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.data.images import Images
from distill.data.shifted import (
    FrameGroups,
    ShiftedImages,
    open_shifted,
    read_class_map,
    read_frame_groups,
)
from distill.errors import DistillError
from distill.evaluation.frozen_classifier import FrozenClassifier


def frame_accuracy(
    right: np.ndarray, anchor: np.ndarray, offset: np.ndarray, *, k: int
) -> tuple[float, float]:
    """Return the share of anchors that are right, and that are right with all their neighbors.

    Args:
        right: bool (R,), whether a frame is right.
        anchor: (R,) number of the frame's anchor; anchors without a frame at offset 0 do not count.
        offset: (R,) frames from the anchor, 0 for the anchor itself.
        k: Largest distance of a neighbor that counts; at least 0.

    Raises:
        DistillError: No anchor.

    Example:
        >>> import numpy as np
        >>> right, anchor = np.array([True, True, False]), np.array([0, 0, 0])
        >>> frame_accuracy(right, anchor, np.array([-1, 0, 1]), k=1)
        (1.0, 0.0)
    """
    assert k >= 0
    anchors = anchor[offset == 0]
    if len(anchors) == 0:
        raise DistillError("no anchor can be read; name other frames")
    nearby_wrong = ~right & (np.abs(offset) <= k)
    num_wrong = np.bincount(anchor, weights=nearby_wrong)
    return float(right[offset == 0].mean()), float((num_wrong[anchors] == 0).mean())


@dataclass(frozen=True)
class OpenShifts:
    """Other datasets, one per folder, and groups of video frames."""

    folders: Sequence[ShiftedImages]
    frames: FrameGroups | None

    def notes(self) -> list[str]:
        """Return remarks on the numbers."""
        return [
            f"{one.name}: {one.num_left_out} class folders match no training class and are left out"
            for one in self.folders
            if one.num_left_out
        ]


def open_shifts(
    train: Images, shifted: Sequence[Path], frames: Path | None, class_map: Path | None
) -> OpenShifts:
    """Open other datasets and video frames.

    Args:
        train: Training images, whose classes are predicted.
        shifted: Folders of class folders.
        frames: CSV file of groups of video frames.
        class_map: File that maps their class names to training classes; None: they are the same.

    Raises:
        DistillError: Files that are missing or cannot be parsed, or two folders of the same name.
    """
    classes = train.classes or ()
    mapping = None if class_map is None else read_class_map(class_map)
    folders = [open_shifted(folder, classes, mapping) for folder in shifted]
    names = [_metric_name(one.name) for one in folders]
    if len(set(names)) < len(names):
        raise DistillError(
            f"two folders of --shifted have the same name ({', '.join(names)}) and metrics.json "
            "needs one name for each; measure them one after the other with different --output"
        )
    groups = None if frames is None else read_frame_groups(frames, classes, mapping)
    return OpenShifts(folders, groups)


@dataclass(frozen=True)
class Shift:
    """One accuracy of one network on one set.

    Attributes:
        title: What it is, in words.
        metric: Its name in metrics.json.
        plain: Of predictions among all training classes.
        restricted: Of predictions among the classes of the set.
    """

    title: str
    metric: str
    plain: float
    restricted: float


def measure_shifts(
    classifier: FrozenClassifier, shifts: OpenShifts, *, frames_k: int
) -> list[Shift]:
    """Measure a network on other datasets and video frames.

    Returns:
        For a folder its accuracy, and that on the clean validation images of its classes where
        there are any; for frames the accuracy on anchors and pm-k.

    Raises:
        DistillError: No training image is of a set's classes, or nothing can be read.
    """
    rows = [row for folder in shifts.folders for row in _folder(classifier, folder)]
    return rows + (_frames(classifier, shifts.frames, frames_k) if shifts.frames else [])


def _folder(classifier: FrozenClassifier, shifted: ShiftedImages) -> list[Shift]:
    head = classifier.head
    embedded = classifier.embed(shifted.images, shifted.index, description=shifted.name)
    if len(embedded.labels) == 0:
        raise DistillError(
            f"no image of {shifted.name} can be read; name another folder with --shifted"
        )
    metric, choices = f"robustness_{_metric_name(shifted.name)}_accuracy", (None, shifted.present)
    accuracies = [
        float(
            shifted.accepted[embedded.labels, head.predict(embedded.features, among=among)].mean()
        )
        for among in choices
    ]
    rows = [Shift(shifted.name, metric, *accuracies)]
    clean = classifier.clean
    of_these = np.isin(clean.labels, shifted.present)
    if of_these.any():
        features, labels = clean.features[of_these], clean.labels[of_these]
        accuracies = [
            float(np.mean(head.predict(features, among=among) == labels)) for among in choices
        ]
        rows.append(Shift(f"{shifted.name}: clean, its classes", f"{metric}_clean", *accuracies))
    return rows


def _frames(classifier: FrozenClassifier, groups: FrameGroups, k: int) -> list[Shift]:
    counts = groups.accepted.any(axis=1)
    head, used = classifier.head, np.unique(groups.frame[counts])
    embedded = classifier.embed(groups.images, used, description=groups.name)
    counts &= np.isin(groups.frame, embedded.index)
    place = np.searchsorted(embedded.index, groups.frame[counts])
    anchor, offset = groups.anchor[counts], groups.offset[counts]
    present = np.flatnonzero(groups.accepted.any(axis=0))
    anchors, pm_k = [], []
    for among in (None, present):
        predicted = head.predict(embedded.features, among=among)[place]
        right = groups.accepted[np.flatnonzero(counts), predicted]
        of_anchors, of_neighbors = frame_accuracy(right, anchor, offset, k=k)
        anchors.append(of_anchors)
        pm_k.append(of_neighbors)
    metric = f"robustness_{_metric_name(groups.name)}"
    title = f"{groups.name}, {(offset == 0).sum()} anchors"
    return [
        Shift(title, f"{metric}_anchor", *anchors),
        Shift(f"{title}: pm-{k}", f"{metric}_pm{k}", *pm_k),
    ]


def _metric_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
