"""Contents of a report as plain data, independent of networks, files and HTML.

The other files of this package fill it in and `distill.reports.page` renders it. A section that
could not be made is None, and `left_out` gives the reason in one sentence. Images are data URIs, so
that a report needs no other file.

Shapes: N points, K clusters, C classes, H x W pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageOps

THUMBNAIL_SIDE = 96
TINY_SIDE = 32  # up to which pixels are kept exactly, and shown enlarged
_QUALITY = 80


@dataclass(frozen=True)
class Series:
    """One curve, by its name in the legend."""

    name: str
    x: Sequence[float]  # ascending
    y: Sequence[float]  # as many; points that are not finite are gaps


@dataclass(frozen=True)
class Curves:
    """One figure of curves that share their axes; labels have the unit."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]  # at least one
    is_share: bool = False  # whether y is a fraction of 1, to be shown in per cent
    y_also: Sequence[float] = ()  # what the vertical axis shows as well, such as other figures' y


@dataclass(frozen=True)
class Picture:
    """An image of the data, as a thumbnail."""

    uri: str
    name: str  # its class, else its file name or number
    is_right: bool | None = None  # whether it has the expected class; None without one
    is_tiny: bool = False  # whether it is small and shown enlarged


@dataclass(frozen=True)
class Query:
    """An image with its nearest training images by either network's embeddings, nearest first."""

    picture: Picture
    teacher: Sequence[Picture] | None  # None without a teacher
    student: Sequence[Picture]


@dataclass(frozen=True)
class NeighborSection:
    """Queries with their neighbors."""

    facts: str  # queries and searched images, in a sentence
    random: Sequence[Query]
    # From those whose nearest image by the student is of another class; empty without labels.
    wrong: Sequence[Query] = ()
    no_teacher: str | None = None  # why the teacher's are missing; None when they are present


@dataclass(frozen=True)
class Cluster:
    """One cluster, with some of its images, drawn at random."""

    number: int  # from 0 on
    size: int
    matched: str  # the class that it stands for
    purity: float  # share of its images that are of that class
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class ClusterSection:
    """Clusters of the embeddings: some at random, those of the highest and of the lowest purity."""

    facts: str  # how the clusters were found, a sentence
    random: Sequence[Cluster]
    best: Sequence[Cluster]
    worst: Sequence[Cluster]
    shares: np.ndarray  # (K, C), of each cluster's images by class, 0 to 1
    rows: Sequence[str]  # names of the clusters
    columns: Sequence[str]  # names of the classes


@dataclass(frozen=True)
class MapSection:
    """Embeddings in two dimensions."""

    facts: str  # how the map was made, a sentence
    points: np.ndarray  # (N, 2)
    labels: np.ndarray | None  # (N,) classes; None without
    classes: Sequence[str]  # their names


@dataclass(frozen=True)
class RunContent:
    """Everything about one run; a section that was left out is None."""

    name: str
    facts: Mapping[str, str]  # what was trained on what
    command: str | None  # that trains such a run; None where it is not known
    options: Mapping[str, str]
    metrics: Mapping[str, Any]  # as in metrics.json
    curves: Sequence[Curves] = ()  # of the training
    robustness: Curves | None = None  # errors under corruption
    neighbors: NeighborSection | None = None
    clusters: ClusterSection | None = None
    map: MapSection | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)  # why, by the section's name


def thumbnail_uri(image: Image.Image) -> str:
    """Return the middle square of an image as a data URI.

    Args:
        image: RGB; sides up to `TINY_SIDE` are kept losslessly, larger ones become a JPEG of at
            most `THUMBNAIL_SIDE` pixels.
    """
    if is_tiny(image):
        return _uri(image, "PNG", optimize=True)
    side = min(*image.size, THUMBNAIL_SIDE)
    square = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
    return _uri(square, "JPEG", quality=_QUALITY, optimize=True)


def is_tiny(image: Image.Image) -> bool:
    """Return whether an image is so small that it is shown enlarged."""
    return max(image.size) <= TINY_SIDE


def png_uri(pixels: np.ndarray) -> str:
    """Return an array (H, W, 4) uint8 as the data URI of a PNG."""
    return _uri(Image.fromarray(pixels), "PNG", optimize=True)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{encoded}"
