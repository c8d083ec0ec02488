import tracemalloc

import numpy as np
import pytest

from distill.embeddings.search import merged, nearest_neighbors, nearest_others, num_shared


def by_definition(indexed: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, indexed)]
    return np.argsort(-units[0] @ units[1].T, axis=1)[:, :k]


@pytest.mark.parametrize("num_rows", [1, 3, 16, 47, 1000])
def test_blocks_find_what_one_search_finds(num_rows: int, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "rows.npy", rng.normal(size=(47, 8)).astype(np.float16))
    indexed, queries = np.load(tmp_path / "rows.npy", mmap_mode="r"), rng.normal(size=(25, 8))
    for k in (1, 5, 47):
        neighbors, similarities = nearest_neighbors(
            indexed, queries, k=k, block_bytes=num_rows * 32
        )
        assert neighbors.dtype == np.int64
        assert similarities.dtype == np.float32
        expected = by_definition(indexed.astype(np.float64), queries, k)
        np.testing.assert_array_equal(neighbors, expected)
        whole = nearest_neighbors(indexed, queries, k=k)
        np.testing.assert_array_equal(neighbors, whole[0])
        np.testing.assert_allclose(similarities, whole[1], atol=1e-6)


def test_the_first_found_wins_a_draw():
    first = np.array([[3, 4]]), np.array([[0.5, 0.25]], np.float32)
    second = np.array([[0, 1]]), np.array([[0.5, 0.25]], np.float32)
    neighbors, similarities = merged(first, second, 3)
    assert neighbors.tolist() == [[3, 0, 4]]
    assert similarities.tolist() == [[0.5, 0.5, 0.25]]


@pytest.mark.parametrize("block_bytes", [7 * 20, 2**20])
def test_an_image_is_not_its_own_neighbor(block_bytes: int):
    rows = np.random.default_rng(0).normal(size=(40, 5))
    images = np.array([2, 3, 39])
    found = nearest_others(rows, images, k=6, block_bytes=block_bytes)
    np.testing.assert_array_equal(found, by_definition(rows, rows[images], 7)[:, 1:])
    everyone_else = nearest_others(rows, images, k=39)
    for image, others in zip(images, everyone_else, strict=True):
        assert sorted([image, *others]) == list(range(40))


def test_nor_among_copies_of_itself():
    rows = np.ones((9, 3))
    for k in (1, 3, 8):
        found = nearest_others(rows, np.arange(9), k=k, block_bytes=24)
        for image, others in enumerate(found):
            assert len({image, *others}) == k + 1


def test_shared_numbers_are_counted_wherever_they_stand():
    assert num_shared(np.array([[1, 2, 3], [4, 5, 6]]), np.array([[3, 9, 1], [7, 8, 0]])) == 2
    assert num_shared(np.array([[1, 2, 3]]), np.array([[3, 1, 2]])) == 3


def test_memory_does_not_grow_with_the_index(tmp_path):
    peaks = []
    for num_rows in (4000, 16000):
        rows = np.random.default_rng(0).normal(size=(num_rows, 64)).astype(np.float16)
        np.save(tmp_path / "rows.npy", rows)
        mapped, queries = np.load(tmp_path / "rows.npy", mmap_mode="r"), rows[:200].copy()
        tracemalloc.start()
        nearest_neighbors(mapped, queries, k=5, block_bytes=2**18)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 6 * 2**18
