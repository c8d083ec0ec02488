"""Accuracy where several classes may be right, and on groups of neighbouring frames.

Sources: Hendrycks et al., "Natural Adversarial Examples" (CVPR 2021) and "The Many Faces of
Robustness" (ICCV 2021) for predictions among the classes that are present only; Shankar et al.,
"Do Image Classifiers Generalize Across Time?" (arXiv 1906.02168) for pm-k.

Shapes: M images, F rows of accepted classes, C training classes, R frames, A anchors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.errors import DistillError


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
        pm_k: Share of anchors that are right with all their neighbours within k frames.
        num_anchors: A.
    """

    anchor: float
    pm_k: float
    num_anchors: int


def frame_accuracy(
    right: np.ndarray, anchor: np.ndarray, offset: np.ndarray, *, k: int
) -> FrameAccuracy:
    """Return the accuracy on anchors, and the one that all their neighbours must confirm.

    Args:
        right: bool (R,), whether a frame is right.
        anchor: (R,) number of the frame's anchor; anchors without a frame at offset 0 do not count.
        offset: (R,) frames from the anchor, 0 for the anchor itself.
        k: Largest distance of a neighbour that counts; at least 0.

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
