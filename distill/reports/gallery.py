"""Images and embeddings that a report shows.

The student's embeddings are computed; the teacher's are those that training kept on disk.

Shapes: M queries, k neighbors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.images import Images
from distill.data.sources import ImageData
from distill.embeddings.cache import NetworkCache
from distill.embeddings.embed import DatasetEmbedder, Embeddings, Split
from distill.embeddings.search import nearest_neighbors
from distill.errors import DistillError
from distill.evaluation.base import (
    EvaluationOptions,
    open_evaluation,
    teacher_cache,
    teacher_of_run,
)
from distill.reports.content import Picture, is_tiny, thumbnail_uri
from distill.run_directory import read_config


class Thumbnails:
    """Pictures of a set of images, each made once.

    Args:
        images: The set.
    """

    def __init__(self, images: Images) -> None:
        self.images = images
        self._made: dict[int, tuple[str, bool]] = {}

    def picture(self, i: int, *, is_right: bool | None = None) -> Picture:
        """Return image `i`, marked as right or wrong.

        Raises:
            BadImageError: It cannot be read.
        """
        if i not in self._made:
            image = self.images.load(i)
            self._made[i] = (thumbnail_uri(image), is_tiny(image))
        uri, tiny = self._made[i]
        return Picture(uri, self.name(i), is_right, tiny)

    def name(self, i: int) -> str:
        """Return the class of image `i`, else the last part of its own name."""
        if self.images.classes is None or self.images.labels is None:
            return self.images.describe(i).replace("\\", "/").rsplit("/", 1)[-1]
        return self.images.classes[int(self.images.labels[i])]


@dataclass(frozen=True)
class Gallery:
    """One network's embeddings of the images.

    Attributes:
        indexed: Training images, among which neighbors are searched.
        queries: Validation images; `indexed` itself where there are none.
        indexed_pictures: Of the set of `indexed`.
        query_pictures: Of the set of `queries`.
    """

    indexed: Embeddings
    queries: Embeddings
    indexed_pictures: Thumbnails
    query_pictures: Thumbnails

    def neighbors(self, k: int) -> np.ndarray:
        """Return the indices (M, k) in the training set of the k nearest images of every query.

        An image is no neighbor of itself. With fewer images than k all of them are returned.

        Raises:
            DistillError: Embeddings that are not finite.
        """
        index, same = self.indexed.index, self.queries is self.indexed
        k = min(k, len(index) - same)
        rows, _ = nearest_neighbors(self.indexed.features, self.queries.features, k=k + same)
        numbers = index[rows]
        return without_own(numbers, self.queries.index) if same else numbers


def without_own(numbers: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Drop each row's own number, or its last number where it does not occur.

    Args:
        numbers: (M, k + 1).
        own: (M,).

    Returns:
        (M, k), in the order of before.
    """
    is_own = numbers == own[:, None]
    is_own[~is_own.any(axis=1), -1] = True
    return numbers[~is_own].reshape(len(numbers), -1)


@dataclass(frozen=True)
class Galleries:
    """Embeddings of a run's images.

    Attributes:
        student: The trained network.
        teacher: Its teacher, or a sentence why its embeddings are missing.
        unavailable: Why no accuracy can be measured on these images; None when it can.
    """

    student: Gallery
    teacher: Gallery | str
    unavailable: str | None


def open_galleries(
    run: Path,
    options: EvaluationOptions,
    *,
    teacher_weights: Path | None = None,
    class_names: Path | None = None,
    num_images: int,
    seed: int,
) -> Galleries:
    """Embed the images of a run.

    Args:
        run: A run directory with a trained network.
        options: Images and device.
        teacher_weights: Weights of the teacher; None: those of the run.
        class_names: See `read_class_names`; None: classes are called by their folders.
        num_images: Images of each split, at most; drawn at random.
        seed: Of the draw.

    Raises:
        DistillError: Weights that do not fit, data or a device that is not there, a list of class
            names that cannot be read.
    """
    subject = open_evaluation(run, options)
    embedder = subject.embedder
    rng = np.random.default_rng(seed)
    train_index, val_index = (
        index if len(index) <= num_images else np.sort(rng.choice(index, num_images, replace=False))
        for index in (embedder.train_index, embedder.val_index)
    )
    embedder = replace(embedder, train_index=train_index, val_index=val_index)
    if class_names is not None:
        rename_classes(embedder.data, read_class_names(class_names))
    cache = replace(subject.cache, embedder=embedder)

    def embedded(split: Split) -> Embeddings:
        """Return the student's embeddings; those of a sample are not cached."""
        images, index = embedder.split(split)
        if len(index) == len(images) or cache.is_complete(split):
            return cache.stored(split).in_memory()
        return embedder.embed(cache.network, images, index, f"{cache.what}, {split}")

    return Galleries(
        _gallery(embedder, embedded),
        _teacher_gallery(read_config(run), embedder, teacher_weights),
        embedder.unavailable_reason(),
    )


def _gallery(embedder: DatasetEmbedder, embeddings_of: Callable[[Split], Embeddings]) -> Gallery:
    data = embedder.data
    train, pictures = embeddings_of("train"), Thumbnails(data.train)
    if data.val is None or len(embedder.val_index) == 0:
        return Gallery(train, train, pictures, pictures)
    return Gallery(train, embeddings_of("val"), pictures, Thumbnails(data.val))


def _teacher_gallery(
    run_options: Mapping[str, Any], embedder: DatasetEmbedder, weights: Path | None
) -> Gallery | str:
    """Return the teacher's embeddings, or a sentence why they are missing."""
    teacher = teacher_of_run(run_options)
    if teacher is None:
        return "the run has no teacher"
    if run_options.get("teacher_view", "center") == "student":
        return "the teacher embedded the student's views, and these embeddings were not kept"
    try:
        if weights is not None:
            teacher = replace(teacher, teacher_weights=weights)
        cache = teacher_cache(teacher, embedder)
        return _gallery(embedder, lambda split: _kept_embeddings(cache, split))
    except DistillError as error:
        return str(error).rstrip(".")


def _kept_embeddings(cache: NetworkCache, split: Split) -> Embeddings:
    if not cache.is_complete(split):
        raise DistillError(
            f"its embeddings of the {split} images are not on this disk; run `distill cache` with "
            "the run's teacher and data"
        )
    return cache.stored(split).in_memory()


def read_class_names(path: Path) -> dict[str, str]:
    """Read display names of classes whose folders are codes, such as WordNet's n01440764.

    The format is that of ImageNet's lists: on each line the folder, white space and the name; of
    several names separated by commas the first is used.

    Raises:
        DistillError: A file that cannot be read, or a line with one word only.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DistillError(f"--class-names {path} cannot be read: {error}") from error
    names = {}
    for number, line in enumerate(lines, start=1):
        folder, *name = line.split(maxsplit=1) or [""]
        if not folder:
            continue
        if not name:
            raise DistillError(
                f"--class-names {path}, line {number}: {line.strip()!r} has no name; write the "
                "class folder, a space and its name"
            )
        names[folder] = name[0].split(",")[0].strip()
    return names


def rename_classes(data: ImageData, names: Mapping[str, str]) -> None:
    """Rename the classes of a dataset by `names`; classes not in it keep their name."""
    for images in (data.train, data.val):
        if images is not None and images.classes is not None:
            images.classes = tuple(names.get(name, name) for name in images.classes)
