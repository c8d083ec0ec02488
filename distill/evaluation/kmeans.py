"""K-means for embeddings beyond memory: a batch of random images at a time.

It starts from k-means on the first batch. Then every batch is assigned to the centroids as they
are, and a centroid moves to the mean of the images that it got in this pass so far: the update of
Sculley (Web-scale k-means clustering, WWW 2010, algorithm 1), a batch of whose images at once. A
pass forgets the one before, so that in the end a centroid is the mean of the images of one pass.

Deliberate limit: a centroid that gets no image in a pass stays where it is.

Shapes: N images, D width, K clusters, B images of a batch.

K-means on L2-normalized embeddings, by FAISS, on the GPU when it sees one.

As published (CompRess, NeurIPS 2020): Euclidean distance, 20 iterations, every image takes part.
Spherical k-means scales centroids to unit norm after every iteration (Dhillon and Modha, 2001).
Departure: k-means starts ten times and the start with the least distances counts, since one start
gave from 0.61 to 0.79 on scikit-learn's digits, by seed alone. The first start begins at random
images, as published, the others at images that the greedy k-means++ picks (Arthur and
Vassilvitskii, 2007), which end near the least distances several times as often
(docs/evaluation.md). For embeddings beyond memory see
`distill.evaluation.kmeans`.

Shapes: N images, D width, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from distill.embeddings.search import (
    BLOCK_BYTES,
    Rows,
    exact_index,
    gpu_is_seen,
    l2_normalized,
    normalized_blocks,
    require_same_width,
    require_seed,
)
from distill.errors import DistillError


def minibatch_kmeans(features: Rows, how: Clustering) -> np.ndarray:
    """Cluster L2-normalized embeddings of which a batch is in memory at a time.

    Args:
        features: (N, D), any scale; an array or a memory map.
        how: With `num_clusters` and `minibatch`, both in range but for the batch.

    Returns:
        Centroids (K, D) float32, not normalized unless `how.spherical`.

    Raises:
        DistillError: A batch smaller than the number of clusters, no pass, or embeddings that are
            not finite.
    """
    assert how.minibatch is not None
    assert how.num_clusters is not None
    _require(how.minibatch, how.num_clusters)
    rng = np.random.default_rng(how.seed)
    means = _start(features, how, rng)
    for _ in range(how.minibatch.num_passes):
        counts = np.zeros(how.num_clusters, np.int64)
        for batch in _batches(features, how.minibatch.batch_size, rng):
            index = exact_index(_centroids(means, how), metric="euclidean")
            counts = moved(means, counts, batch, index.search(batch, 1)[1][:, 0])
    return _centroids(means, how)


def _start(features: Rows, how: Clustering, rng: np.random.Generator) -> np.ndarray:
    """Return what k-means in memory makes of one batch."""
    assert how.minibatch is not None
    images = rng.permutation(len(features))[: how.minibatch.batch_size]
    in_memory = replace(how, minibatch=None)
    return in_memory.centroids(features[np.sort(images)], num_classes=0)


def _centroids(means: np.ndarray, how: Clustering) -> np.ndarray:
    return l2_normalized(means, what="centroids") if how.spherical else means


def moved(
    means: np.ndarray, counts: np.ndarray, batch: np.ndarray, clusters: np.ndarray
) -> np.ndarray:
    """Move means, in place, to the mean of what they have and of their images of a batch.

    Args:
        means: (K, D) float32.
        counts: (K,) images that each is the mean of; 0 forgets where it is.
        batch: (B, D) float32.
        clusters: (B,) of every image.

    Returns:
        The new counts (K,).
    """
    from scipy.sparse import csr_matrix

    # One entry a row, K x B: the product sums the images of every cluster without K masks.
    ones = np.ones(len(batch), np.float32)
    order = np.argsort(clusters, kind="stable")
    more = np.bincount(clusters, minlength=len(means))
    starts = np.concatenate([[0], np.cumsum(more)])
    sums = csr_matrix((ones, order, starts), shape=(len(means), len(batch))) @ batch
    got = more > 0
    total = (counts + more)[got, None]
    means[got] += ((sums[got] - more[got, None] * means[got]) / total).astype(np.float32)
    return counts + more


def _batches(features: Rows, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield all images in random batches of about the same size, read in the order of the file."""
    num_batches = -(-len(features) // batch_size)
    for images in np.array_split(rng.permutation(len(features)), num_batches):
        yield l2_normalized(features[np.sort(images)])


def _require(minibatch: Minibatch, num_clusters: int) -> None:
    if minibatch.batch_size < num_clusters:
        raise DistillError(
            f"a batch of k-means has {minibatch.batch_size} images, it needs at least one for each "
            f"of the {num_clusters} clusters; ask for larger batches or fewer clusters"
        )
    if minibatch.num_passes < 1:
        raise DistillError(
            f"the number of passes of k-means is {minibatch.num_passes}, it must be 1 or more"
        )


NUM_ITERATIONS = 20
NUM_RESTARTS = 10
# Images that a start is picked from: every pick goes over all of them.
_LEAST_PART, _PART_PER_CLUSTER = 2**14, 64


@dataclass(frozen=True)
class Minibatch:
    """How k-means goes over embeddings that do not fit into memory.

    Attributes:
        batch_size: Images at a time, at least as many as clusters; some 12 x D bytes
            each at the peak.
        num_passes: Over all images, at least 1.
    """

    batch_size: int = 2**16
    num_passes: int = 5


@dataclass(frozen=True)
class Clustering:
    """How embeddings are clustered; the defaults are the published protocol, started ten times.

    Attributes:
        num_clusters: From 1 to N; None: as many as there are classes.
        seed: Picks the first centroids; from 0 to 2^31 - 1.
        num_iterations: At least 1.
        restarts: Times to begin from other centroids; 1 as published.
        spherical: Whether centroids are scaled to unit norm.
        minibatch: None: all embeddings are in memory as float32.
    """

    num_clusters: int | None = None
    seed: int = 0
    num_iterations: int = NUM_ITERATIONS
    restarts: int = NUM_RESTARTS
    spherical: bool = False
    minibatch: Minibatch | None = None

    def centroids(self, features: Rows, *, num_classes: int) -> np.ndarray:
        """Return the centroids (K, D) of embeddings; arguments and errors are those of `kmeans`."""
        return kmeans(
            features,
            num_classes if self.num_clusters is None else self.num_clusters,
            seed=self.seed,
            num_iterations=self.num_iterations,
            restarts=self.restarts,
            spherical=self.spherical,
            minibatch=self.minibatch,
        )


def kmeans(
    features: Rows,
    num_clusters: int,
    *,
    seed: int,
    num_iterations: int = NUM_ITERATIONS,
    restarts: int = NUM_RESTARTS,
    spherical: bool = False,
    minibatch: Minibatch | None = None,
) -> np.ndarray:
    """Cluster L2-normalized embeddings; every image takes part.

    Args:
        features: (N, D), any scale.
        num_clusters: From 1 to N.
        seed: Picks the first centroids; from 0 to 2^31 - 1.
        num_iterations: At least 1; with `minibatch`, on its first batch.
        restarts: Times to begin from other centroids; those with the least distances win. The first
            begins at random images, as published, the others at images far from each other.
        spherical: Whether centroids are scaled to unit norm.
        minibatch: For embeddings beyond memory; None: all are held as float32.

    Returns:
        Centroids (K, D) float32, not normalized unless `spherical`.

    Raises:
        DistillError: A number out of its range, or embeddings that are not finite.
    """
    require_clusters(num_clusters, num_images=len(features), seed=seed)
    for name, count in (("iterations", num_iterations), ("restarts", restarts)):
        if count < 1:
            raise DistillError(f"the number of {name} is {count}, it must be 1 or more")
    if minibatch is not None:
        how = Clustering(num_clusters, seed, num_iterations, restarts, spherical, minibatch)
        return minibatch_kmeans(features, how)
    features = l2_normalized(features)
    rng = np.random.default_rng(seed)
    starts = (_far_apart(features, num_clusters, rng) for _ in range(restarts - 1))
    found = (
        kmeans_once(
            features,
            num_clusters,
            seed=seed,
            num_iterations=num_iterations,
            spherical=spherical,
            start=start,
        )
        for start in chain([None], starts)  # one at a time: many wide centroids are gigabytes
    )
    return min(found, key=lambda one: one[0])[1]


def kmeans_once(
    features: np.ndarray,
    num_clusters: int,
    *,
    seed: int = 0,
    num_iterations: int = NUM_ITERATIONS,
    spherical: bool = False,
    start: np.ndarray | None = None,
) -> tuple[float, np.ndarray]:
    """Run k-means from one start; arguments in range are taken for granted.

    Args:
        features: (N, D) float32, L2-normalized.
        num_clusters: From 1 to N.
        seed: Picks the random images to begin at.
        num_iterations: At least 1.
        spherical: Whether centroids are scaled to unit norm.
        start: (K, D) centroids to begin at; None: random images.

    Returns:
        The sum of squared distances before the last iteration's move (negative similarities if
        `spherical`), and the centroids (K, D) float32.
    """
    import faiss

    clustering: Any = faiss.Kmeans(
        features.shape[1],
        num_clusters,
        niter=num_iterations,
        seed=seed,
        spherical=spherical,
        min_points_per_centroid=1,  # else FAISS warns of small clusters
        max_points_per_centroid=len(features),  # else FAISS clusters a sample
        gpu=gpu_is_seen(),
    )
    clustering.train(features, init_centroids=start)
    # Spherical k-means counts similarities.
    distances = clustering.obj[-1]
    return -distances if spherical else distances, clustering.centroids


def _far_apart(features: np.ndarray, num_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Return the embeddings (K, D) that the greedy k-means++ picks from a random part."""
    from sklearn.cluster import kmeans_plusplus

    number = max(_LEAST_PART, _PART_PER_CLUSTER * num_clusters)
    if number < len(features):
        features = features[np.sort(rng.choice(len(features), number, replace=False))]
    seed = int(rng.integers(2**31))
    return np.ascontiguousarray(kmeans_plusplus(features, num_clusters, random_state=seed)[0])


def require_clusters(num_clusters: int | None, *, num_images: int, seed: int) -> None:
    """Refuse what k-means cannot do; no number of clusters is as good as any.

    Raises:
        DistillError: A number of clusters outside 1..`num_images`, a seed outside 0..2^31 - 1.
    """
    if num_clusters is not None and not 1 <= num_clusters <= num_images:
        raise DistillError(
            f"the number of clusters is {num_clusters}, it must be between 1 and the number of "
            f"training images, {num_images}"
        )
    require_seed(seed)


def nearest_centroids(
    features: Rows, centroids: np.ndarray, *, block_bytes: int = BLOCK_BYTES
) -> np.ndarray:
    """Assign every L2-normalized embedding to its nearest centroid.

    Spherical centroids have unit norm, for which distance and similarity agree.

    Args:
        features: (N, D), any scale; read in blocks.
        centroids: (K, D) float32, taken as they are.
        block_bytes: Of a block as float32, in bytes.

    Returns:
        Clusters (N,) int64, 0..K-1.

    Raises:
        DistillError: Embeddings that are not finite, or not as wide as the centroids.
    """
    require_same_width(centroids, features)
    index = exact_index(centroids, metric="euclidean")
    clusters = np.empty(len(features), np.int64)
    for start, block in normalized_blocks(features, block_bytes):
        clusters[start : start + len(block)] = index.search(block, 1)[1][:, 0]
    return clusters
