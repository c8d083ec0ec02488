"""K-means on L2-normalized embeddings, by FAISS, on the GPU when it sees one.

As published (CompRess, NeurIPS 2020): Euclidean distance, 20 iterations, every image takes part.
Spherical k-means scales centroids to unit norm after every iteration (Dhillon and Modha, 2001).
Departure: k-means starts ten times and the result with the smallest distances is kept: one start
gave from 0.61 to 0.79 on scikit-learn's digits, by seed alone. The first start begins at random
images, as published, the others at images that the greedy k-means++ picks (Arthur and
Vassilvitskii, 2007), which end near the least distances several times as often
(docs/evaluation.md).

Embeddings beyond memory are clustered a batch at a time by scikit-learn (Sculley, Web-scale k-means
clustering, WWW 2010), initialized by k-means on the first batch.

Shapes: N images, D width, K clusters.
"""

from __future__ import annotations

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

NUM_ITERATIONS = 20
NUM_RESTARTS = 10
_NUM_PASSES = 5  # over embeddings beyond memory
# Images that k-means++ picks from: every pick goes over all of them.
_LEAST_PART, _PART_PER_CLUSTER = 2**14, 64


def kmeans(
    features: Rows,
    num_clusters: int,
    *,
    seed: int = 0,
    num_iterations: int = NUM_ITERATIONS,
    restarts: int = NUM_RESTARTS,
    spherical: bool = False,
    batch_size: int | None = None,
) -> np.ndarray:
    """Cluster L2-normalized embeddings; every image takes part.

    Args:
        features: (N, D), any scale.
        num_clusters: K, from 1 to N.
        seed: Picks the first centroids; from 0 to 2^31 - 1.
        num_iterations: At least 1.
        restarts: Number of starts; the result with the smallest distances is returned. 1 as
            published.
        spherical: Whether centroids are scaled to unit norm.
        batch_size: Images in memory at a time, at least K; `num_iterations` and `restarts` are
            those of the first batch. None: all are held as float32.

    Returns:
        Centroids (K, D) float32, not normalized unless `spherical`.

    Raises:
        DistillError: A number out of its range, or embeddings that are not finite.

    Example:
        >>> import numpy as np
        >>> rows = np.array([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]])
        >>> sorted(kmeans(rows, 2).round(2).tolist())
        [[0.0, 1.0], [1.0, 0.0]]
    """
    require_clusters(num_clusters, num_images=len(features), seed=seed)
    for name, count in (("iterations", num_iterations), ("restarts", restarts)):
        if count < 1:
            raise DistillError(f"the number of {name} is {count}, it must be 1 or more")
    settings: dict[str, Any] = {
        "seed": seed,
        "num_iterations": num_iterations,
        "spherical": spherical,
    }
    if batch_size is not None:
        settings["restarts"] = restarts
        return _kmeans_in_batches(features, num_clusters, batch_size, settings)
    features = l2_normalized(features)
    rng = np.random.default_rng(seed)
    starts = (_far_apart(features, num_clusters, rng) for _ in range(restarts - 1))
    ends = (
        kmeans_once(features, num_clusters, start=start, **settings)
        for start in chain([None], starts)  # lazily: wide centroids take gigabytes
    )
    return min(ends, key=lambda end: end[0])[1]


def kmeans_once(
    features: np.ndarray,
    num_clusters: int,
    *,
    seed: int = 0,
    num_iterations: int = NUM_ITERATIONS,
    spherical: bool = False,
    start: np.ndarray | None = None,
) -> tuple[float, np.ndarray]:
    """Run k-means from one start, without checking arguments.

    Args:
        features: (N, D) float32, L2-normalized.
        num_clusters: From 1 to N.
        seed: Picks the random images to start at.
        num_iterations: At least 1.
        spherical: Whether centroids are scaled to unit norm.
        start: (K, D) initial centroids; None: random images.

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
    # The objective of spherical k-means is a sum of similarities.
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


def _kmeans_in_batches(
    features: Rows, num_clusters: int, batch_size: int, settings: dict[str, Any]
) -> np.ndarray:
    """Run mini-batch k-means; each random batch is read in the order of the file."""
    from sklearn.cluster import MiniBatchKMeans

    if batch_size < num_clusters:
        raise DistillError(
            f"a batch of k-means has {batch_size} images, it needs at least one for each of the "
            f"{num_clusters} clusters; ask for larger batches or fewer clusters"
        )
    rng = np.random.default_rng(settings["seed"])
    first = features[np.sort(rng.permutation(len(features))[:batch_size])]
    model = MiniBatchKMeans(
        num_clusters,
        init=kmeans(first, num_clusters, **settings),
        n_init=1,
        random_state=settings["seed"],
        reassignment_ratio=0,  # the initial centroids already cover the data
    )
    shape = -(-len(features) // len(first)), len(first)
    for _ in range(_NUM_PASSES):
        # The last batch is filled up with images of the first: it needs one for each cluster.
        for images in np.resize(rng.permutation(len(features)), shape):
            model.partial_fit(l2_normalized(features[np.sort(images)]))
            if settings["spherical"]:
                model.cluster_centers_ = l2_normalized(model.cluster_centers_, what="centroids")
    return model.cluster_centers_


def require_clusters(num_clusters: int | None, *, num_images: int, seed: int) -> None:
    """Refuse a number of clusters, or a seed, out of range; None for clusters is allowed.

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
