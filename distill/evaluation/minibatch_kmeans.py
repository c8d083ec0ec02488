"""K-means for embeddings beyond memory: a batch of random images at a time.

It starts from k-means on the first batch. Then every batch is assigned to the centroids as they
are, and a centroid moves to the mean of the images that it got in this pass so far: the update of
Sculley (Web-scale k-means clustering, WWW 2010, algorithm 1), a batch of whose images at once. A
pass forgets the one before, so that in the end a centroid is the mean of the images of one pass.

Deliberate limit: a centroid that gets no image in a pass stays where it is.

Shapes: N images, D width, K clusters, B images of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from distill.errors import DistillError
from distill.evaluation.kmeans import Clustering, Minibatch
from distill.evaluation.row_blocks import Rows, l2_normalized
from distill.evaluation.search import exact_index


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
