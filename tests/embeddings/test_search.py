"""Search and normalization block by block, and what measures on embeddings require."""

import tracemalloc

import numpy as np
import pytest

from distill.embeddings.search import (
    l2_normalized,
    nearest_neighbors,
    nearest_others,
    normalized_blocks,
    num_shared,
    require_k,
    require_ks,
    require_labels,
    require_seed,
    require_splits,
    rows_per_block,
)
from distill.errors import DistillError


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


def test_between_blocks_the_first_wins_a_draw():
    units = np.eye(3, dtype=np.float32)
    indexed = units[[1, 0, 2, 0, 1, 0]]
    neighbors, similarities = nearest_neighbors(indexed, units[:1], k=4, block_bytes=12)
    assert neighbors[0, :3].tolist() == [1, 3, 5]
    assert similarities.tolist() == [[1, 1, 1, 0]]


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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_get_unit_norm_in_memory_of_their_own(dtype):
    features = np.random.default_rng(0).normal(size=(2500, 3)).astype(dtype)  # more than a part
    features[7] = 0
    before = features.copy()
    rows = l2_normalized(features)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(features, before)
    assert not np.shares_memory(rows, features)
    for row, given in zip(rows, before.astype(np.float64), strict=True):
        np.testing.assert_allclose(row, given / max(np.sqrt((given**2).sum()), 1e-9), rtol=1e-3)
    assert (rows[7] == 0).all()


def test_blocks_are_the_whole_in_order():
    features = np.random.default_rng(0).normal(size=(11, 4))
    blocks = list(normalized_blocks(features, 3 * 16))
    assert [(start, len(rows)) for start, rows in blocks] == [(0, 3), (3, 3), (6, 3), (9, 2)]
    np.testing.assert_array_equal(np.vstack([rows for _, rows in blocks]), l2_normalized(features))
    assert list(normalized_blocks(features[:0])) == []


def test_a_row_is_the_least():
    assert rows_per_block(4096, 2**28) == 16384
    assert rows_per_block(4096, 100) == rows_per_block(0, 4) == 1


def test_the_first_block_that_is_not_finite_is_named():
    features = np.ones((8, 4))
    features[5, 1], features[6, 0] = np.nan, np.inf
    with pytest.raises(DistillError, match=r"^2 of 8 embeddings are not finite; the network's"):
        list(normalized_blocks(features))
    with pytest.raises(DistillError, match=r"^1 of 2 embeddings from row 4 on are not finite"):
        list(normalized_blocks(features, 32))


def test_labels_that_are_missing_in_part():
    with pytest.raises(DistillError, match="2 of 3 labels of photos are missing"):
        require_labels(np.array([-1, 4, -1]), what="photos")
    with pytest.raises(DistillError, match="photos have no labels"):
        require_labels(np.zeros(0, int), what="photos")


def test_both_splits_are_looked_at():
    good, labels = np.eye(3), np.array([0, 1, 1])
    require_splits(good, labels, good[:1], labels[:1])  # one class is enough to count on
    for arguments, message in (
        ((good, labels * 0, good, labels), "the training images are of 1 class"),
        ((good, labels, good, labels - 1), "1 of 3 labels of the validation images are missing"),
        ((good, labels[:2], good, labels), "3 embeddings and 2 labels of the training images"),
        ((good, labels, good[:1], labels), "1 embeddings and 3 labels of the validation images"),
        ((good, labels, good[:, :2], labels), "are 3 wide and the validation embeddings 2"),
    ):
        with pytest.raises(DistillError, match=message):
            require_splits(*arguments)


def test_numbers_of_neighbors():
    require_k(4, most=4)
    require_ks([1, 4], most=4)
    with pytest.raises(DistillError, match="no k was given, name one or more between 1 and"):
        require_ks([], most=4)
    with pytest.raises(DistillError, match="k is 5, it must be between 1 and the number of others"):
        require_ks([1, 5], most=4, what="the number of others")


def test_seeds():
    require_seed(0)
    for seed in (-1, 2**31):
        with pytest.raises(DistillError, match=f"the seed is {seed}, it must be between"):
            require_seed(seed)
