"""A map of points as the geometry of an SVG figure, coloured and shaped by class.

Seven colours and six shapes make 42 classes apart; further ones repeat, and the legend says so.

Shapes: N points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIDE, MARGIN = 600, 14
NUM_COLOURS = 7
# Paths of a mark around the place where it is moved to; all of about the same area.
MARKS = (
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",  # disc
    "m-3.6-3.6h7.2v7.2h-7.2z",  # square
    "m0-5l4.8 8.4h-9.6z",  # triangle
    "m0-5.2l5.2 5.2l-5.2 5.2l-5.2-5.2z",  # diamond
    "m-1.5-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",  # cross
    "m0 5l4.8-8.4h-9.6z",  # triangle on its tip
)


@dataclass(frozen=True)
class PointGroup:
    """The points of one class.

    Attributes:
        name: Of the class.
        size: Number of points.
        colour: 0 to 6.
        mark: Path of its mark.
        path: All its marks.
    """

    name: str
    size: int
    colour: int
    mark: str
    path: str


@dataclass(frozen=True)
class Scatter:
    """A figure.

    Attributes:
        groups: By class.
        description: In words.
        repeats: Whether two classes look the same.
    """

    groups: tuple[PointGroup, ...]
    description: str
    repeats: bool


def scatter(points: np.ndarray, labels: np.ndarray | None, classes: Sequence[str]) -> Scatter:
    """Lay out points.

    Args:
        points: (N, 2), any scale; both directions keep their proportion.
        labels: (N,) classes; None for one group.
        classes: Names by label.
    """
    placed = _placed(points)
    if labels is None:
        labels, classes = np.zeros(len(points), np.int64), ["image"]
    groups = [
        _group(classes[label], int(number), placed[labels == label])
        for number, label in enumerate(np.unique(labels))
    ]
    of_classes = f" of {len(groups)} classes" if len(groups) > 1 else ""
    return Scatter(
        tuple(groups),
        f"{len(points):,} points{of_classes}; near each other are images that the student sees "
        "alike.",
        repeats=len(groups) > NUM_COLOURS * len(MARKS),
    )


def _placed(points: np.ndarray) -> np.ndarray:
    """Scale to the figure, the same in both directions, and centre."""
    low, high = points.min(axis=0), points.max(axis=0)
    scale = (SIDE - 2 * MARGIN) / max(float((high - low).max()), 1e-12)
    return (points - (low + high) / 2) * scale + SIDE / 2


def _group(name: str, number: int, points: np.ndarray) -> PointGroup:
    # Neighbouring numbers differ in both, and 7 and 6 have no common factor: 42 pairs.
    mark = MARKS[number % len(MARKS)]
    path = "".join(f"M{x:.1f} {y:.1f}{mark}" for x, y in points)
    return PointGroup(name, len(points), number % NUM_COLOURS, mark, path)
