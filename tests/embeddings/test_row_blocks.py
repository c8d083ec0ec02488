import tracemalloc

import numpy as np
import pytest

from distill.embeddings.search import l2_normalized, normalized_blocks, rows_per_block
from distill.errors import DistillError


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


def test_memory_does_not_grow_with_the_rows(tmp_path):
    peaks = []
    for num_rows in (4000, 16000):
        np.save(tmp_path / "rows.npy", np.ones((num_rows, 64), np.float16))
        mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
        tracemalloc.start()
        for _ in normalized_blocks(mapped, 2**18):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 4 * 2**18
