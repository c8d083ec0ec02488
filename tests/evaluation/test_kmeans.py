import tracemalloc

import numpy as np
import pytest

from distill.errors import DistillError
from distill.evaluation.kmeans import kmeans, nearest_centroids


def unit_rows(*shape: int) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def spread(features: np.ndarray, centroids: np.ndarray) -> float:
    """Sum of the squared distances to the nearest centroids: what k-means minimizes."""
    distances = ((features[:, None] - centroids[None]) ** 2).sum(axis=2)
    return float(distances.min(axis=1).sum())


def test_centroids_are_the_means_of_all_their_images():
    features = unit_rows(1200, 2)  # 600 images a cluster: FAISS by itself takes 256 of them
    centroids = kmeans(features * 3, 2, seed=0, num_iterations=100)
    assert centroids.dtype == np.float32
    clusters = nearest_centroids(features, centroids)
    for cluster, centroid in enumerate(centroids):
        expected = features[clusters == cluster].mean(axis=0)
        np.testing.assert_allclose(centroid, expected, atol=1e-5)


def test_the_same_seed_gives_the_same_centroids():
    features = unit_rows(500, 8)
    first, second = (kmeans(features, 12, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - kmeans(features, 12, seed=6)).max() > 0.01


def test_twenty_iterations_unless_told_otherwise():
    features = unit_rows(4000, 8)  # far from settled after twenty
    ended = {n: kmeans(features, 12, seed=5, num_iterations=n) for n in (1, 10, 19, 20, 21)}
    np.testing.assert_array_equal(kmeans(features, 12, seed=5), ended[20])
    sums = [spread(features, centroids) for centroids in ended.values()]
    assert sums == sorted(set(sums), reverse=True)


def test_the_best_of_several_starts_is_taken():
    features = unit_rows(500, 8)
    gains = []
    for seed in range(3):
        once, often = (kmeans(features, 12, seed=seed, restarts=n) for n in (1, 10))
        gains.append(spread(features, once) - spread(features, often))
    assert min(gains) > -1e-3  # the first start is among the ten
    assert max(gains) > 1


def small_and_large_groups() -> tuple[np.ndarray, np.ndarray]:
    """Return unit rows in 24 tight groups, some with forty times the images of others."""
    rng, centers = np.random.default_rng(1), unit_rows(24, 16)
    groups = np.repeat(np.arange(24), [10, 400] * 12)
    rows = centers[groups] + 0.01 * rng.normal(size=(len(groups), 16))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), groups


@pytest.mark.parametrize("part", [10**6, 1000])
def test_small_groups_are_found_by_starts_that_lie_far_apart(part, monkeypatch):
    monkeypatch.setattr("distill.evaluation.kmeans._LEAST_PART", part)
    monkeypatch.setattr("distill.evaluation.kmeans._PART_PER_CLUSTER", 1)
    features, groups = small_and_large_groups()
    least = spread(features, np.stack([features[groups == one].mean(axis=0) for one in range(24)]))
    for seed in range(3):
        assert spread(features, kmeans(features, 24, seed=seed)) < 1.001 * least
        # Random images are nearly always of the large groups.
        assert spread(features, kmeans(features, 24, seed=seed, restarts=1)) > 2 * least


def test_few_images_make_no_noise(capfd):
    assert kmeans(unit_rows(5, 3), 4, seed=0).shape == (4, 3)
    assert kmeans(np.ones((5, 3)), 3, seed=0).shape == (3, 3)  # clusters that start out empty
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_seeds_out_of_range(seed: int):
    with pytest.raises(DistillError, match=f"the seed is {seed}, it must be between 0 and"):
        kmeans(np.eye(5), 2, seed=seed)
    assert kmeans(np.eye(5), 2, seed=2**31 - 1).shape == (2, 5)


def test_spherical_centroids_are_the_directions_of_their_images():
    features = unit_rows(300, 6)
    centroids = kmeans(features * 5, 4, seed=0, num_iterations=200, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-5)
    clusters = nearest_centroids(features, centroids)
    np.testing.assert_array_equal(clusters, (features @ centroids.T).argmax(axis=1))
    for cluster, centroid in enumerate(centroids):
        mean = features[clusters == cluster].mean(axis=0)
        np.testing.assert_allclose(centroid, mean / np.linalg.norm(mean), atol=1e-3)


def test_the_best_of_several_spherical_starts_is_the_most_similar():
    features, gains = unit_rows(500, 8), []
    for seed in range(3):
        once, often = (
            (features @ kmeans(features, 12, seed=seed, restarts=n, spherical=True).T).max(axis=1)
            for n in (1, 10)
        )
        gains.append(often.sum() - once.sum())
    assert min(gains) > -1e-3
    assert max(gains) > 0.5


def test_blocks_of_a_memory_map_are_assigned_as_the_whole_is(tmp_path):
    features = (unit_rows(101, 8) * 3).astype(np.float16)
    np.save(tmp_path / "rows.npy", features)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    centroids = kmeans(mapped, 7, seed=0)
    whole = nearest_centroids(features, centroids)
    assert len(set(whole)) == 7
    for num_rows in (1, 10, 100, 101):
        found = nearest_centroids(mapped, centroids, block_bytes=num_rows * 32)
        np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("name", ["iterations", "restarts"])
def test_numbers_of_iterations_and_restarts_out_of_range(name: str):
    keyword = {"iterations": "num_iterations", "restarts": "restarts"}[name]
    with pytest.raises(DistillError, match=f"number of {name} is 0, it must be 1 or more"):
        kmeans(np.eye(5), 2, seed=0, **{keyword: 0})


def test_centroids_of_other_widths():
    with pytest.raises(DistillError, match="5 wide and the validation embeddings 4;"):
        nearest_centroids(np.eye(4), np.eye(5, dtype=np.float32))


def test_batches_come_close_to_all_at_once():
    features = unit_rows(3000, 8)
    whole = spread(features, kmeans(features, 12))
    begun = spread(features, kmeans(features[::10], 12))
    found = spread(features, kmeans(features * 3, 12, batch_size=300))
    assert whole * 0.999 < found < whole + 0.25 * (begun - whole)


@pytest.mark.parametrize("spherical", [False, True])
def test_batches_of_one_class_after_the_other_do_no_harm(spherical: bool):
    labels = np.arange(1200) // 200  # as folders are read
    rng = np.random.default_rng(0)
    features = ((rng.normal(size=(6, 10)) * 3)[labels] + rng.normal(size=(1200, 10))).astype("f2")
    centroids = kmeans(features, 6, batch_size=150, spherical=spherical)
    clusters = nearest_centroids(features, centroids)
    assert sum(np.bincount(clusters[labels == one]).max() for one in range(6)) > 0.98 * 1200
    norms = np.linalg.norm(centroids, axis=1)
    assert (np.abs(norms - 1) < 1e-5).all() == spherical


def test_batches_may_be_as_small_as_the_number_of_clusters():
    features = unit_rows(15, 3)  # two batches, of 8 and of 7
    first, again = (kmeans(features, 10, batch_size=10) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.float32
    assert kmeans(features, 15, batch_size=1000).shape == (15, 3)
    with pytest.raises(DistillError, match=r"batch of k-means has 4 images, .* each of the 5 clus"):
        kmeans(features, 5, batch_size=4)


def test_memory_of_batches_does_not_grow_with_the_images(tmp_path):
    peaks = []
    for num_images in (4000, 16000):
        rows = np.random.default_rng(0).normal(size=(num_images, 64)).astype(np.float16)
        np.save(tmp_path / "rows.npy", rows)
        mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
        tracemalloc.start()
        kmeans(mapped, 8, restarts=1, batch_size=1000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 5 * 1000 * 64 * 4
