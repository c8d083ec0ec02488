"""What a report says, as plain data: nothing here knows networks, files or HTML.

The other files of this package fill these in and `distill.reports.page` renders them. A section
that could not be made is None, and `left_out` says why in one sentence. Images are data URIs, so
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
    """One curve.

    Attributes:
        name: Shown in the legend.
        x: Ascending numbers.
        y: As many; points that are not finite are gaps.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Curves:
    """One figure of curves that share their axes.

    Attributes:
        title: Of the figure.
        x_label: With the unit.
        y_label: With the unit.
        series: At least one.
        is_share: Whether y is a fraction of 1, to be shown in per cent.
        y_also: Values beside its own that the vertical axis shows, such as those of other figures.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    is_share: bool = False
    y_also: Sequence[float] = ()


@dataclass(frozen=True)
class Picture:
    """An image of the data.

    Attributes:
        uri: Data URI of the thumbnail.
        name: What to call the image: its class, else its place.
        is_right: Whether its class is the one that was asked for; None where nothing was.
        is_tiny: Whether it has so few pixels that it is shown enlarged.
    """

    uri: str
    name: str
    is_right: bool | None = None
    is_tiny: bool = False


@dataclass(frozen=True)
class Query:
    """An image with its nearest training images, nearest first.

    Attributes:
        picture: The image.
        teacher: Its neighbors by the teacher's embeddings; None without a teacher.
        student: Its neighbors by the student's.
    """

    picture: Picture
    teacher: Sequence[Picture] | None
    student: Sequence[Picture]


@dataclass(frozen=True)
class NeighborSection:
    """Queries with their neighbors.

    Attributes:
        facts: What is looked up among what, a sentence.
        random: Queries drawn at random.
        wrong: Queries drawn from those whose nearest image by the student is of another class;
            empty without labels.
        no_teacher: Why the teacher's neighbors are missing; None when they are there.
    """

    facts: str
    random: Sequence[Query]
    wrong: Sequence[Query] = ()
    no_teacher: str | None = None


@dataclass(frozen=True)
class Cluster:
    """One cluster.

    Attributes:
        number: From 0 on.
        size: Images in it.
        matched: The class that it stands for.
        purity: Share of its images that are of that class.
        pictures: Some of its images, drawn at random.
    """

    number: int
    size: int
    matched: str
    purity: float
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class ClusterSection:
    """Clusters of the embeddings.

    Attributes:
        facts: How the clusters were found, a sentence.
        random: Clusters drawn at random.
        best: Those of the highest purity.
        worst: Those of the lowest.
        shares: (K, C) of each cluster's images by class, rows in the order of `rows`; 0 to 1.
        rows: Names of the clusters.
        columns: Names of the classes.
    """

    facts: str
    random: Sequence[Cluster]
    best: Sequence[Cluster]
    worst: Sequence[Cluster]
    shares: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]


@dataclass(frozen=True)
class MapSection:
    """Embeddings in two dimensions.

    Attributes:
        facts: How the map was made, a sentence.
        points: (N, 2).
        labels: (N,) classes; None without.
        classes: Their names.
    """

    facts: str
    points: np.ndarray
    labels: np.ndarray | None
    classes: Sequence[str]


@dataclass(frozen=True)
class RunContent:
    """Everything about one run.

    Attributes:
        name: Of the run.
        facts: What was trained on what, by name.
        command: A command that trains such a run; None where it is not known.
        options: Every option by name.
        metrics: As in metrics.json.
        curves: Of the training.
        robustness: Errors under corruption.
        neighbors: None when left out, as the next two.
        clusters: See there.
        map: See there.
        left_out: Why a section is missing, by the section's name.
    """

    name: str
    facts: Mapping[str, str]
    command: str | None
    options: Mapping[str, str]
    metrics: Mapping[str, Any]
    curves: Sequence[Curves] = ()
    robustness: Curves | None = None
    neighbors: NeighborSection | None = None
    clusters: ClusterSection | None = None
    map: MapSection | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


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
    """Say whether an image has so few pixels that it is shown enlarged."""
    return max(image.size) <= TINY_SIDE


def png_uri(pixels: np.ndarray) -> str:
    """Return an array (H, W, 4) uint8 as the data URI of a PNG."""
    return _uri(Image.fromarray(pixels), "PNG", optimize=True)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{encoded}"
