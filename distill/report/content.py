"""What a report says, as plain data: nothing here knows networks, files or HTML.

Jobs fill these in and `distill.report.page` renders them. A section that could not be made is None,
and `left_out` says why in one sentence.

Shapes: N points, K clusters, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


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
class Cluster:
    """One cluster.

    Attributes:
        number: From 0 on.
        size: Images in it.
        matched: The class that it stands for; None where classes did not suffice.
        purity: Share of its images that are of that class, or of its largest one without a match.
        pictures: Some of its images, drawn at random.
    """

    number: int
    size: int
    matched: str | None
    purity: float
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class ClusterSection:
    """What the embeddings fall into.

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
class Query:
    """An image with its nearest training images, nearest first.

    Attributes:
        picture: The image.
        teacher: Neighbours in the teacher's eyes; None without a teacher.
        student: Neighbours in the student's.
    """

    picture: Picture
    teacher: Sequence[Picture] | None
    student: Sequence[Picture]


@dataclass(frozen=True)
class NeighbourSection:
    """Queries with their neighbours.

    Attributes:
        facts: What is looked up among what, a sentence.
        random: Queries drawn at random.
        wrong: Queries drawn from those whose nearest image in the student's eyes is of another
            class; empty without labels.
        no_teacher: Why the teacher's neighbours are missing; None when they are there.
    """

    facts: str
    random: Sequence[Query]
    wrong: Sequence[Query] = ()
    no_teacher: str | None = None


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
        clusters: None when left out, as the next two.
        neighbours: See there.
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
    clusters: ClusterSection | None = None
    neighbours: NeighbourSection | None = None
    map: MapSection | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
