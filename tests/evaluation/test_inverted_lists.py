import tracemalloc

import numpy as np
import pytest

from distill.embeddings.search import nearest_neighbors
from distill.errors import DistillError
from distill.evaluation.inverted_lists import InvertedLists

ROWS = np.random.default_rng(0).normal(size=(700, 12)).astype(np.float16)
QUERIES = np.random.default_rng(1).normal(size=(90, 12))


@pytest.mark.parametrize("block_bytes", [48 * 5, 48 * 64, 2**20])
def test_with_all_lists_probed_it_is_exact(block_bytes: int):
    lists = InvertedLists(num_lists=20, num_probes=30, block_bytes=block_bytes)
    neighbors, similarities, recall = lists.search(ROWS, QUERIES, k=9)
    expected = nearest_neighbors(ROWS, QUERIES, k=9)
    np.testing.assert_array_equal(neighbors, expected[0])
    np.testing.assert_allclose(similarities, expected[1], atol=1e-6)
    assert recall == 1


def test_recall_is_the_share_of_true_neighbors():
    true, _ = nearest_neighbors(ROWS, QUERIES, k=5)
    recalls = []
    for probes in (1, 2, 8):
        lists = InvertedLists(num_lists=25, num_probes=probes)
        neighbors, similarities, recall = lists.search(ROWS, QUERIES, k=5)
        shared = [len({*a} & {*b}) for a, b in zip(neighbors, true, strict=True)]
        assert recall == pytest.approx(np.mean(shared) / 5)  # all queries are in the sample
        assert (np.diff(similarities) <= 0).all()
        recalls.append(recall)
    assert 0.1 < recalls[0] < recalls[1] < recalls[2] < 1


def test_recall_on_a_sample():
    whole = InvertedLists(num_lists=25, num_probes=1).search(ROWS, QUERIES, k=5)
    found = [
        InvertedLists(num_lists=25, num_probes=1, num_sampled=n).search(ROWS, QUERIES, k=5)
        for n in (30, 30, 89)
    ]
    for neighbors, *_ in found:
        np.testing.assert_array_equal(neighbors, whole[0])
    assert found[0][2] == found[1][2] != whole[2]
    assert found[2][2] == pytest.approx(whole[2], abs=1 / 89)
    np.testing.assert_allclose(found[0][2] * 150, round(found[0][2] * 150))


def test_queries_of_lists_that_are_too_short_are_searched_exactly():
    lists = InvertedLists(num_lists=100, num_probes=1)
    neighbors, _, recall = lists.search(ROWS, QUERIES, k=200)
    np.testing.assert_array_equal(neighbors, nearest_neighbors(ROWS, QUERIES, k=200)[0])
    assert recall == 1


def test_lists_may_be_empty():
    copies = np.eye(3)[np.arange(90) % 3]  # three lists at most hold something
    neighbors, similarities, recall = InvertedLists(num_lists=9, num_probes=9).search(
        copies, np.eye(3), k=30
    )
    for i, row in enumerate(neighbors):
        assert sorted(row) == list(range(i, 90, 3))
    np.testing.assert_allclose(similarities, 1, atol=1e-6)
    assert recall == 1


def test_the_square_root_is_the_number_of_lists():
    default = InvertedLists(num_probes=2).search(ROWS, QUERIES, k=3)
    asked = InvertedLists(num_lists=26, num_probes=2).search(ROWS, QUERIES, k=3)
    np.testing.assert_array_equal(default[0], asked[0])


@pytest.mark.parametrize("num_lists", [1, 16])
def test_memory_does_not_grow_with_the_index(num_lists: int, tmp_path):
    peaks = []
    for num_rows in (4000, 16000):
        rows = np.random.default_rng(0).normal(size=(num_rows, 64)).astype(np.float16)
        np.save(tmp_path / "rows.npy", rows)
        mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
        lists = InvertedLists(num_lists, num_probes=2, num_sampled=50, block_bytes=2**18)
        tracemalloc.start()
        lists.search(mapped, rows[:200].copy(), k=5)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 7 * 2**18


def test_what_cannot_be():
    for lists, message in (
        (InvertedLists(num_lists=0), "number of lists is 0, it must be between 1 and .* 700"),
        (InvertedLists(num_lists=701), "number of lists is 701"),
        (InvertedLists(num_probes=0), "number of probes is 0, it must be 1 or more"),
        (InvertedLists(num_sampled=0), "number of sampled queries is 0"),
        (InvertedLists(seed=-1), "the seed is -1"),
    ):
        with pytest.raises(DistillError, match=message):
            lists.search(ROWS, QUERIES, k=1)
    with pytest.raises(DistillError, match="k is 701"):
        InvertedLists().search(ROWS, QUERIES, k=701)
    with pytest.raises(DistillError, match="12 wide and the validation embeddings 3"):
        InvertedLists().search(ROWS, QUERIES[:, :3], k=1)
    with pytest.raises(DistillError, match="not finite"):
        InvertedLists().search(ROWS, np.where(QUERIES > 2, np.nan, QUERIES), k=1)
