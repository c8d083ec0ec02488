import tracemalloc

import numpy as np
import pytest

from distill.errors import DistillError
from distill.evaluation.clusters import align_clusters
from distill.evaluation.kmeans import Clustering, Minibatch, kmeans, moved, nearest_centroids


def unit_rows(*shape: int) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def spread(features: np.ndarray, centroids: np.ndarray) -> float:
    distances = ((features[:, None] - centroids[None]) ** 2).sum(axis=2)
    return float(distances.min(axis=1).sum())


def test_a_mean_moves_to_the_mean_of_all_that_it_got():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 9, 3)).astype(np.float32)
    clusters = [np.array([0, 2, 2, 0, 0, 2, 0, 2, 2]), np.array([2, 1, 1, 2, 2, 2, 2, 1, 2])]
    means = np.full((4, 3), 7, np.float32)
    counts = moved(means, np.zeros(4, np.int64), first, clusters[0])
    counts = moved(means, counts, second, clusters[1])
    assert counts.tolist() == [4, 3, 11, 0]
    rows, of_row = np.vstack([first, second]), np.concatenate(clusters)
    for cluster in range(3):
        np.testing.assert_allclose(means[cluster], rows[of_row == cluster].mean(axis=0), atol=1e-5)
    np.testing.assert_array_equal(means[3], 7)  # nobody came: it stays


def test_it_comes_close_to_all_at_once():
    features = unit_rows(3000, 8)
    whole = spread(features, kmeans(features, 12, seed=0))
    begun = spread(features, kmeans(features[::10], 12, seed=0))
    found = spread(features, kmeans(features * 3, 12, seed=0, minibatch=Minibatch(300)))
    assert whole * 0.999 < found < whole + 0.25 * (begun - whole)


def test_images_of_one_class_after_the_other_do_no_harm():
    rng = np.random.default_rng(0)
    labels = np.arange(1200) // 200  # as folders are read
    centers = rng.normal(size=(6, 10)) * 3
    features = (centers[labels] + rng.normal(size=(1200, 10))).astype(np.float16)
    how = Clustering(minibatch=Minibatch(150, num_passes=2))
    found = align_clusters(features, labels, features, labels, clustering=how)
    assert found.accuracy > 0.98


@pytest.mark.parametrize("spherical", [False, True])
def test_a_pass_over_one_batch_of_everything_is_an_iteration(spherical: bool):
    features, keywords = unit_rows(400, 6), {"seed": 4, "num_iterations": 3, "spherical": spherical}
    centroids = kmeans(features, 5, **keywords)
    for num_passes in (1, 2, 3):
        clusters = nearest_centroids(features, centroids)
        means = [features[clusters == cluster].mean(axis=0) for cluster in range(5)]
        norms = [np.linalg.norm(mean) if spherical else 1 for mean in means]
        expected = np.stack([mean / norm for mean, norm in zip(means, norms, strict=True)])
        centroids = kmeans(features, 5, minibatch=Minibatch(400, num_passes), **keywords)
        np.testing.assert_allclose(centroids, expected, atol=1e-6)


def test_it_starts_from_images_of_all_classes():
    directions = np.eye(4)[[0] * 100 + [1, 2, 3] * 100]  # more than a batch of the first
    found = kmeans(directions, 4, seed=0, minibatch=Minibatch(100, num_passes=1))
    np.testing.assert_allclose(np.sort(found, axis=0)[-1], 1, atol=1e-5)
    assert len(set(found.argmax(axis=1))) == 4


def test_spherical_centroids_have_unit_norm_and_point_to_the_mean():
    features = unit_rows(500, 6)
    whole = Minibatch(500, num_passes=60)
    found = kmeans(features, 4, seed=0, spherical=True, minibatch=whole)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    clusters = nearest_centroids(features, found)
    for cluster, centroid in enumerate(found):
        mean = features[clusters == cluster].mean(axis=0)
        np.testing.assert_allclose(centroid, mean / np.linalg.norm(mean), atol=1e-3)
    in_batches = kmeans(features, 4, seed=0, spherical=True, minibatch=Minibatch(125))
    similar = [(features @ centroids.T).max(axis=1).sum() for centroids in (found, in_batches)]
    assert similar[1] > 0.98 * similar[0]


def test_the_seed_decides():
    features = unit_rows(500, 6)
    found = [kmeans(features, 8, seed=seed, minibatch=Minibatch(100)) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0.01
    assert found[0].dtype == np.float32


def test_batches_may_be_as_small_as_the_number_of_clusters():
    features = unit_rows(15, 3)  # two batches, of 8 and of 7
    assert kmeans(features, 10, seed=0, minibatch=Minibatch(10)).shape == (10, 3)
    assert kmeans(features, 15, seed=0, minibatch=Minibatch(1000)).shape == (15, 3)


def test_memory_does_not_grow_with_the_images(tmp_path):
    peaks = []
    for num_images in (4000, 16000):
        rows = np.random.default_rng(0).normal(size=(num_images, 64)).astype(np.float16)
        np.save(tmp_path / "rows.npy", rows)
        mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
        tracemalloc.start()
        kmeans(mapped, 8, seed=0, restarts=1, minibatch=Minibatch(1000, num_passes=2))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 5 * 1000 * 64 * 4


def test_what_cannot_be():
    for minibatch, message in (
        (Minibatch(4), "batch of k-means has 4 images, .* each of the 5 clusters"),
        (Minibatch(9, num_passes=0), "number of passes of k-means is 0, it must be 1 or more"),
    ):
        with pytest.raises(DistillError, match=message):
            kmeans(unit_rows(20, 3), 5, seed=0, minibatch=minibatch)
    with pytest.raises(DistillError, match="number of clusters is 21"):
        kmeans(unit_rows(20, 3), 21, seed=0, minibatch=Minibatch(30))
    broken = unit_rows(20, 3)
    broken[3] = np.nan
    with pytest.raises(DistillError, match="not finite"):
        kmeans(broken, 5, seed=0, minibatch=Minibatch(10))
