"""The sections of a report that show images: nearest neighbors, clusters, a map.

- Neighbors: query images with their nearest training images, by the student and by the teacher.
- Clusters: k-means of the student's training embeddings, shown by random images; contingency and
  matching are those of `distill.evaluation.clusters`.
- Map: L2-normalized embeddings go through PCA to 50 dimensions and then t-SNE (van der Maaten and
  Hinton, JMLR 2008), both scikit-learn's, seeded and started from the first two principal
  components. t-SNE preserves which images are near each other; distances between groups and their
  sizes have no meaning.

Shapes: N training images, M queries, k neighbors, K clusters, C classes that occur, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.embeddings.search import l2_normalized, require_labels
from distill.errors import DistillError
from distill.evaluation.clusters import Alignment, align
from distill.evaluation.kmeans import kmeans, nearest_centroids
from distill.reports.content import (
    Cluster,
    ClusterSection,
    MapSection,
    NeighborSection,
    Picture,
    Query,
)
from distill.reports.gallery import Gallery

NUM_NEIGHBORS = 5
NUM_RANDOM_QUERIES, NUM_WRONG_QUERIES = 8, 4
NUM_RANDOM_CLUSTERS, NUM_EXTREME_CLUSTERS = 6, 3
NUM_PICTURES = 10  # of a cluster
MIN_MAPPED, MAX_MAPPED = 8, 2_000  # images
PCA_WIDTH = 50
_PERPLEXITY = 30.0  # scikit-learn's own; about as many neighbors as are kept near


def neighbor_section(student: Gallery, teacher: Gallery | str, seed: int) -> NeighborSection:
    """Return queries with their neighbors.

    Args:
        student: The student's embeddings.
        teacher: The teacher's embeddings, or why they are missing.
        seed: Of the draw.

    Raises:
        DistillError: Fewer than two images to look up.
    """
    if len(student.indexed.index) < 2 or len(student.queries.index) == 0:
        raise DistillError("there are fewer than two images to look up")
    images, numbers = student.indexed_pictures.images, student.queries.index
    of_student = student.neighbors(NUM_NEIGHBORS)
    of_teacher = None if isinstance(teacher, str) else teacher.neighbors(NUM_NEIGHBORS)
    teacher_numbers = numbers if isinstance(teacher, str) else teacher.queries.index
    rows = np.flatnonzero(np.isin(numbers, teacher_numbers))  # of queries that both have
    wrong = rows[:0]
    if images.labels is not None:
        wrong = rows[images.labels[of_student[rows, 0]] != student.queries.labels[rows]]
    rng = np.random.default_rng(seed)

    def shown(neighbors: np.ndarray, row: int) -> list[Picture]:
        label, known = student.queries.labels[row], images.labels
        return [
            student.indexed_pictures.picture(
                int(number), is_right=None if known is None else bool(known[number] == label)
            )
            for number in neighbors
        ]

    def drawn(candidates: np.ndarray, most: int) -> list[Query]:
        queries = []
        for row in rng.choice(candidates, min(most, len(candidates)), replace=False):
            in_teacher = np.searchsorted(teacher_numbers, numbers[row])
            queries.append(
                Query(
                    student.query_pictures.picture(int(numbers[row])),
                    None if of_teacher is None else shown(of_teacher[in_teacher], row),
                    shown(of_student[row], row),
                )
            )
        return queries

    legend = "✓ and a whole frame: of the query's class; ✗ and a dashed frame: of another."
    if images.labels is None:
        legend = "The images have no labels, so that right and wrong are not marked."
    return NeighborSection(
        facts=f"Images of {student.query_pictures.images.name} with their nearest of "
        f"{len(student.indexed.index):,} images of {images.name}, by cosine similarity, nearest "
        f"first. {legend}",
        random=drawn(rows, NUM_RANDOM_QUERIES),
        wrong=drawn(wrong, NUM_WRONG_QUERIES),
        no_teacher=teacher if isinstance(teacher, str) else None,
    )


def cluster_section(student: Gallery, seed: int) -> ClusterSection:
    """Return the clusters of a student's training embeddings.

    Raises:
        DistillError: The training images have no labels, or are of one class.
    """
    pictures, labels = student.indexed_pictures, student.indexed.labels
    images = pictures.images
    require_labels(labels, what=f"the images of {images.name}")
    assert images.classes is not None
    classes = images.classes
    of_image, alignment = clustered(student.indexed.features, labels, seed=seed)
    rng = np.random.default_rng(seed)
    nonempty = np.flatnonzero(alignment.sizes)
    by_purity = nonempty[np.argsort(-alignment.matched_share[nonempty], kind="stable")]
    num_extreme = max(1, min(NUM_EXTREME_CLUSTERS, len(nonempty) // 2))

    def described(clusters: Sequence[int]) -> list[Cluster]:
        clusters_shown = []
        for number in clusters:
            members, label = np.flatnonzero(of_image == number), alignment.mapping[number]
            drawn = rng.choice(members, min(NUM_PICTURES, len(members)), replace=False)
            clusters_shown.append(
                Cluster(
                    number=int(number),
                    size=len(members),
                    matched=str(classes[label]),
                    purity=float(alignment.matched_share[number]),
                    pictures=[
                        pictures.picture(
                            int(student.indexed.index[row]), is_right=bool(labels[row] == label)
                        )
                        for row in drawn
                    ],
                )
            )
        return clusters_shown

    order = np.argsort(alignment.mapping)
    shares = alignment.contingency / np.maximum(alignment.sizes, 1)[:, None]
    random = rng.choice(nonempty, min(NUM_RANDOM_CLUSTERS, len(nonempty)), replace=False)
    return ClusterSection(
        facts=f"{len(labels):,} images of {images.name}, embedded by the student, in "
        f"{len(alignment.sizes)} clusters by k-means, as many as there are classes; clusters are "
        "matched to classes one to one, with the largest sum of shares.",
        random=described(np.sort(random).tolist()),
        best=described(by_purity[:num_extreme].tolist()),
        worst=described(by_purity[::-1][:num_extreme].tolist()),
        shares=shares[order],
        rows=[f"cluster {number}" for number in order],
        columns=[str(classes[label]) for label in alignment.classes],
    )


def clustered(
    features: np.ndarray, labels: np.ndarray, *, seed: int
) -> tuple[np.ndarray, Alignment]:
    """Cluster embeddings into as many clusters as there are classes and match the two.

    Args:
        features: (N, D), any scale.
        labels: (N,) classes, at least 0, of two or more.
        seed: Of k-means.

    Returns:
        The cluster of every image (N,), and the matching of clusters to classes.
    """
    centroids = kmeans(features, len(np.unique(labels)), seed=seed)
    of_image = nearest_centroids(features, centroids)
    return of_image, align(of_image, labels, of_image, labels, num_clusters=len(centroids))


def map_section(student: Gallery, seed: int) -> MapSection:
    """Return a map of at most `MAX_MAPPED` queries.

    Raises:
        DistillError: See `embedding_map`.
    """
    queries, images = student.queries, student.query_pictures.images
    rows = np.arange(len(queries.index))
    if len(rows) > MAX_MAPPED:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_MAPPED, replace=False))
    points = embedding_map(queries.features[rows], seed=seed)
    labels = queries.labels[rows]
    has_labels = images.classes is not None and labels.min() >= 0
    return MapSection(
        facts=f"{len(rows):,} images of {images.name}, embedded by the student: PCA, then t-SNE. "
        "Images near each other have similar embeddings; distances between groups have no meaning.",
        points=points,
        labels=labels if has_labels else None,
        classes=images.classes or (),
    )


def embedding_map(features: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return a two-dimensional map of embeddings.

    Args:
        features: (N, D), any scale; N from `MIN_MAPPED` to `MAX_MAPPED`.
        seed: Of the approximations; from 0 to 2^32 - 1.

    Returns:
        Points (N, 2) float32, centered on 0.

    Raises:
        DistillError: Too few or too many images, or embeddings that are not finite.
    """
    num_images = len(features)
    if not MIN_MAPPED <= num_images <= MAX_MAPPED:
        raise DistillError(
            f"a map needs {MIN_MAPPED} to {MAX_MAPPED:,} images and {num_images:,} were given; "
            "draw a sample of them"
        )
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    features = l2_normalized(features)
    if np.ptp(features, axis=0).max() < 1e-6:  # t-SNE divides by the spread
        return np.zeros((num_images, 2), np.float32)
    width = min(PCA_WIDTH, num_images, features.shape[1])
    reduced = PCA(width, random_state=seed).fit_transform(features)
    tsne = TSNE(
        2,
        perplexity=min(_PERPLEXITY, (num_images - 1) / 3),
        init="pca" if width >= 2 else "random",
        random_state=seed,
    )
    places = tsne.fit_transform(reduced)
    return (places - places.mean(axis=0)).astype(np.float32)
