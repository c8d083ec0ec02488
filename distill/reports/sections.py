"""Pictures of a set of images, each made once.

Names for classes whose folders have none, such as WordNet's n01440764.

The form is that of ImageNet's own lists: on each line the folder, white space, and the name.

Query images with their nearest training images, in the student's eyes and in the teacher's.

Shapes: N training images, M queries, k neighbors.

The cluster page: what the student's training embeddings fall into, shown by random images.

Clusters, contingency and matching are those of `distill.evaluation.clusters`.

Shapes: N training images, K clusters, C classes that occur; K = C.

How a run's teacher sees the images, from its embeddings on disk; nothing is embedded here.

A map of embeddings: two dimensions in which neighbors stay neighbors.

L2-normalized embeddings go through PCA to 50 dimensions and then t-SNE (van der Maaten and Hinton,
JMLR 2008), both scikit-learn's, seeded and started from the first two principal components. What
t-SNE keeps is who is near whom; distances between far groups and their sizes say nothing.

Shapes: N images, D width.

Fills in the sections of a run's report that show its images as the student sees them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.data.images import Images
from distill.data.sources import ImageData
from distill.embeddings.cache import NetworkCache
from distill.embeddings.embed import Embeddings
from distill.embeddings.evaluator import Evaluator, Split
from distill.embeddings.search import l2_normalized, nearest_neighbors, require_labels
from distill.errors import DistillError
from distill.evaluation.base import open_evaluation, teacher_cache, teacher_of_run
from distill.evaluation.clusters import Alignment, align
from distill.evaluation.kmeans import kmeans, nearest_centroids
from distill.reports.content import (
    Cluster,
    ClusterSection,
    MapSection,
    NeighborSection,
    Picture,
    Query,
    is_tiny,
    thumbnail_uri,
)
from distill.run_directory import read_config

if TYPE_CHECKING:
    from distill.embeddings.embed import Embeddings
    from distill.reports.report import ReportOptions


class Thumbnails:
    """Makes pictures of a set of images.

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
        """Return what to call image `i`: its class, else the last part of its own name."""
        if self.images.classes is None or self.images.labels is None:
            return self.images.describe(i).replace("\\", "/").rsplit("/", 1)[-1]
        return self.images.classes[int(self.images.labels[i])]


def read_class_names(path: Path) -> dict[str, str]:
    """Read a list of class names; of several names with commas between them the first counts.

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
    """Call the classes of a dataset as `names` says; those that are not in it keep their name."""
    for images in (data.train, data.val):
        if images is not None and images.classes is not None:
            images.classes = tuple(names.get(name, name) for name in images.classes)


NUM_NEIGHBORS = 5
NUM_RANDOM, NUM_WRONG = 8, 4


@dataclass(frozen=True)
class Gallery:
    """How one network sees the images.

    Attributes:
        indexed: Training images that are looked up.
        queries: Images that are looked up among them; `indexed` itself where there are no others.
        indexed_pictures: Of the set of `indexed`.
        query_pictures: Of the set of `queries`.
    """

    indexed: Embeddings
    queries: Embeddings
    indexed_pictures: Thumbnails
    query_pictures: Thumbnails

    def neighbors(self, k: int) -> np.ndarray:
        """Return the numbers in their set of the k nearest images of every query, (M, k).

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


def neighbor_section(student: Gallery, teacher: Gallery | str, seed: int) -> NeighborSection:
    """Return queries with their neighbors.

    Args:
        student: How the student sees the images.
        teacher: How the teacher does, or why that is not known.
        seed: Of the draw.

    Raises:
        DistillError: Fewer than two images to look up.
    """
    if len(student.indexed.index) < 2 or len(student.queries.index) == 0:
        raise DistillError("there are fewer than two images to look up")
    in_student = student.neighbors(NUM_NEIGHBORS)
    in_teacher = None if isinstance(teacher, str) else teacher.neighbors(NUM_NEIGHBORS)
    rows = _rows_in_both(student, teacher)
    wrong = np.intersect1d(rows, np.flatnonzero(_is_wrong(student, in_student)))
    rng = np.random.default_rng(seed)

    def drawn(candidates: np.ndarray, number: int) -> list[Query]:
        chosen = rng.choice(candidates, min(number, len(candidates)), replace=False)
        return [_query(student, teacher, in_student, in_teacher, int(row)) for row in chosen]

    return NeighborSection(
        facts=_facts(student),
        random=drawn(rows, NUM_RANDOM),
        wrong=drawn(wrong, NUM_WRONG),
        no_teacher=teacher if isinstance(teacher, str) else None,
    )


def _facts(student: Gallery) -> str:
    images = student.indexed_pictures.images
    queries = student.query_pictures.images.name
    text = (
        f"Images of {queries} with their nearest of {len(student.indexed.index):,} images of "
        f"{images.name}, by cosine similarity, nearest first."
    )
    if images.labels is None:
        return f"{text} The images have no labels: what is right is for you to see."
    return f"{text} ✓ and a whole frame: of the query's class; ✗ and a dashed frame: of another."


def _rows_in_both(student: Gallery, teacher: Gallery | str) -> np.ndarray:
    """Return the rows of the student's queries that the teacher has, too."""
    if isinstance(teacher, str):
        return np.arange(len(student.queries.index))
    return np.flatnonzero(np.isin(student.queries.index, teacher.queries.index))


def _is_wrong(student: Gallery, in_student: np.ndarray) -> np.ndarray:
    """Say of every query whether its nearest image is of another class; False without labels."""
    labels = student.indexed_pictures.images.labels
    if labels is None:
        return np.zeros(len(in_student), bool)
    return labels[in_student[:, 0]] != student.queries.labels


def _query(
    student: Gallery,
    teacher: Gallery | str,
    in_student: np.ndarray,
    in_teacher: np.ndarray | None,
    row: int,
) -> Query:
    number, label = int(student.queries.index[row]), int(student.queries.labels[row])
    of_teacher = None
    if in_teacher is not None and not isinstance(teacher, str):
        teacher_row = int(np.searchsorted(teacher.queries.index, number))
        of_teacher = _shown(student.indexed_pictures, in_teacher[teacher_row], label)
    return Query(
        student.query_pictures.picture(number),
        of_teacher,
        _shown(student.indexed_pictures, in_student[row], label),
    )


def _shown(pictures: Thumbnails, numbers: Sequence[int], label: int) -> list[Picture]:
    labels = pictures.images.labels
    return [
        pictures.picture(
            int(number), is_right=None if labels is None else bool(labels[number] == label)
        )
        for number in numbers
    ]


NUM_RANDOM_CLUSTERS, NUM_EXTREME = 6, 3
NUM_PICTURES = 10


def clustered(
    features: np.ndarray, labels: np.ndarray, *, seed: int
) -> tuple[np.ndarray, Alignment]:
    """Cluster embeddings into as many clusters as there are classes and match the two.

    Args:
        features: (N, D), any scale.
        labels: (N,) classes, at least 0, of two or more.
        seed: Of k-means.

    Returns:
        The cluster of every image (N,), and which class every cluster stands for.
    """
    centroids = kmeans(features, len(np.unique(labels)), seed=seed)
    of_image = nearest_centroids(features, centroids)
    return of_image, align(of_image, labels, of_image, labels, num_clusters=len(centroids))


def cluster_section(student: Gallery, seed: int) -> ClusterSection:
    """Return the cluster page of a student.

    Raises:
        DistillError: The training images have no labels, or are of one class.
    """
    images = student.indexed_pictures.images
    require_labels(student.indexed.labels, what=f"the images of {images.name}")
    of_image, found = clustered(student.indexed.features, student.indexed.labels, seed=seed)
    rng = np.random.default_rng(seed)
    there = np.flatnonzero(found.sizes)
    by_purity = there[np.argsort(-found.matched_share[there], kind="stable")]
    num_extreme = max(1, min(NUM_EXTREME, len(there) // 2))
    drawn = np.sort(rng.choice(there, min(NUM_RANDOM_CLUSTERS, len(there)), replace=False))

    def shown(numbers: np.ndarray) -> list[Cluster]:
        return [
            _cluster(int(number), np.flatnonzero(of_image == number), found, student, rng)
            for number in numbers
        ]

    order = np.argsort(found.mapping)
    shares = found.contingency / np.maximum(found.sizes, 1)[:, None]
    names = [str(images.classes[label]) for label in found.classes]  # type: ignore[index]
    return ClusterSection(
        facts=f"{len(student.indexed.labels):,} images of {images.name}, embedded by the student, "
        f"in {len(found.sizes)} clusters by k-means, as many as there are classes; every cluster "
        "stands for one class, so that the shares of those classes are the largest in sum.",
        random=shown(drawn),
        best=shown(by_purity[:num_extreme]),
        worst=shown(by_purity[::-1][:num_extreme]),
        shares=shares[order],
        rows=[f"cluster {number}" for number in order],
        columns=names,
    )


def _cluster(
    number: int, members: np.ndarray, found: Alignment, student: Gallery, rng: np.random.Generator
) -> Cluster:
    """Return a cluster with some of its images, drawn at random."""
    pictures: Thumbnails = student.indexed_pictures
    label = int(found.mapping[number])
    drawn = rng.choice(members, min(NUM_PICTURES, len(members)), replace=False)
    assert pictures.images.classes is not None
    return Cluster(
        number=number,
        size=len(members),
        matched=str(pictures.images.classes[label]),
        purity=float(found.matched_share[number]),
        pictures=[
            pictures.picture(
                int(student.indexed.index[row]),
                is_right=bool(student.indexed.labels[row] == label),
            )
            for row in drawn
        ],
    )


def teacher_eyes(
    run_options: Mapping[str, Any], evaluator: Evaluator, options: ReportOptions
) -> Gallery | str:
    """Return how the teacher sees the images of an evaluator, or a sentence why that is not known.

    Args:
        run_options: Of the run.
        evaluator: Images, device and precision.
        options: Of the report.
    """
    teacher = teacher_of_run(run_options)
    if teacher is None:
        return "the run has no teacher"
    if run_options.get("teacher_view", "center") != "center":
        return "the teacher looked at the student's views, and its embeddings were not kept"
    try:
        if options.teacher_weights is not None:
            teacher = replace(teacher, teacher_weights=options.teacher_weights)
        cache = teacher_cache(teacher, evaluator)
        train = _embeddings(cache, "train")
        if evaluator.data.val is None or len(evaluator.val_index) == 0:
            val = train
        else:
            val = _embeddings(cache, "val")
    except DistillError as error:
        return str(error).rstrip(".")
    data = evaluator.data
    return Gallery(train, val, Thumbnails(data.train), Thumbnails(data.val or data.train))


def _embeddings(cache: NetworkCache, split: Split) -> Embeddings:
    """Return the embeddings of a split.

    Raises:
        DistillError: When they are not on the disk, or not all of them.
    """
    if not cache.is_complete(split):
        raise DistillError(
            f"its embeddings of the {split} images are not on this disk; `distill cache` with the "
            "run's teacher and data keeps them"
        )
    return cache.stored(split).in_memory()


MIN_IMAGES = 8
MAX_IMAGES = 2_000
PCA_WIDTH = 50
_PERPLEXITY = 30.0  # scikit-learn's own; about as many neighbors as are kept near


def embedding_map(features: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Lay embeddings out in a plane.

    Args:
        features: (N, D), any scale; N from `MIN_IMAGES` to `MAX_IMAGES`.
        seed: Of the approximations; from 0 to 2^32 - 1.

    Returns:
        Places (N, 2) float32, centered on 0.

    Raises:
        DistillError: Too few or too many images, or embeddings that are not finite.
    """
    num_images = len(features)
    if not MIN_IMAGES <= num_images <= MAX_IMAGES:
        raise DistillError(
            f"a map is of {MIN_IMAGES} to {MAX_IMAGES:,} images and {num_images:,} were given; "
            "draw some of them"
        )
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    features = l2_normalized(features)
    if np.ptp(features, axis=0).max() < 1e-6:  # t-SNE divides by the spread
        return np.zeros((num_images, 2), np.float32)
    width = min(PCA_WIDTH, num_images, features.shape[1])
    reduced = PCA(width, random_state=seed).fit_transform(features)
    start = "pca" if width >= 2 else "random"
    perplexity = min(_PERPLEXITY, (num_images - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init=start, random_state=seed)
    places = tsne.fit_transform(reduced)
    return (places - places.mean(axis=0)).astype(np.float32)


def picture_sections(path: Path, options: ReportOptions) -> dict[str, Any]:
    """Return `clusters`, `neighbors`, `map` and `left_out` of a `RunContent`.

    Args:
        path: A run directory with a trained network.
        options: What is shown.

    Raises:
        DistillError: See `distill.evaluation.base.open_evaluation`.
    """
    evaluation = open_evaluation(path, options.measurement())
    evaluator = _sampled(evaluation.evaluator, options)
    cache = replace(evaluation.cache, evaluator=evaluator)
    if options.class_names is not None:
        rename_classes(evaluator.data, read_class_names(options.class_names))
    student = _student_eyes(cache)
    left_out: dict[str, str] = {}
    sections: dict[str, Any] = {"left_out": left_out}
    makers = {
        "clusters": lambda: cluster_section(student, options.seed),
        "neighbors": lambda: neighbor_section(
            student, teacher_eyes(read_config(path), evaluator, options), options.seed
        ),
        "map": lambda: _map_section(student, options.seed),
    }
    for name, make in makers.items():
        try:
            sections[name] = make()
        except DistillError as error:
            left_out[name] = str(error).rstrip(".")
    reason = evaluator.unavailable_reason()
    if reason is not None:
        left_out["summary"] = reason
    return sections


def _sampled(evaluator: Evaluator, options: ReportOptions) -> Evaluator:
    """Return the evaluator with at most `num_images` images of a split."""
    rng = np.random.default_rng(options.seed)
    train, val = (
        index
        if len(index) <= options.num_images
        else np.sort(rng.choice(index, options.num_images, replace=False))
        for index in (evaluator.train_index, evaluator.val_index)
    )
    return replace(evaluator, train_index=train, val_index=val)


def _student_eyes(cache: NetworkCache) -> Gallery:
    evaluator = cache.evaluator
    train_images, val_images = evaluator.data.train, evaluator.data.val
    train = _embedded(cache, "train")
    if val_images is None or len(evaluator.val_index) == 0:
        return Gallery(train, train, Thumbnails(train_images), Thumbnails(train_images))
    val = _embedded(cache, "val")
    return Gallery(train, val, Thumbnails(train_images), Thumbnails(val_images))


def _embedded(cache: NetworkCache, split: Split) -> Embeddings:
    """Return the embeddings of what is shown; those of a sample alone are not kept."""
    images, index = cache.evaluator.split(split)
    if len(index) == len(images) or cache.is_complete(split):
        return cache.stored(split).in_memory()
    return cache.evaluator.embed(cache.network, images, index, f"{cache.what}, {split}")


def _map_section(student: Gallery, seed: int) -> MapSection:
    shown, images = student.queries, student.query_pictures.images
    rows = np.arange(len(shown.index))
    if len(rows) > MAX_IMAGES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_IMAGES, replace=False))
    points = embedding_map(shown.features[rows], seed=seed)
    labels = shown.labels[rows]
    has_labels = images.classes is not None and labels.min() >= 0
    return MapSection(
        facts=f"{len(rows):,} images of {images.name} as the student sees them: PCA, then t-SNE. "
        "Who is near whom means something; how far apart groups lie does not.",
        points=points,
        labels=labels if has_labels else None,
        classes=images.classes or (),
    )
