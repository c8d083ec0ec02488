"""Some rows of a table as what slices like an array."""

import numpy as np
import pytest

from distill.embeddings.search import nearest_neighbors
from distill.embeddings.store import SelectedRows, open_table


@pytest.fixture
def selected(make_store):
    """Return rows 7, 3, 20 and 29 of a table, as they are and as an array."""
    store, rows = make_store()
    index = np.array([7, 3, 20, 29])
    return SelectedRows(open_table(store.folder), index), rows[index].astype(np.float16)


def test_it_slices_like_the_array(selected):
    rows, array = selected
    assert rows.shape == array.shape == (4, 5)
    assert len(rows) == 4
    for key in (slice(1, 3), slice(None), np.array([3, 0, 3]), slice(0, 0)):
        np.testing.assert_array_equal(rows[key], array[key])
        assert rows[key].dtype == np.float32
    np.testing.assert_array_equal(np.asarray(rows), array)
    assert np.array(rows, dtype=np.float64).dtype == np.float64


def test_what_is_read_is_ones_own(selected):
    rows, array = selected
    rows[:][:] = 0
    np.testing.assert_array_equal(rows[:], array)


def test_searches_take_it_for_an_array(selected):
    rows, array = selected
    for found, expected in zip(
        nearest_neighbors(rows, rows, k=2, block_bytes=40),
        nearest_neighbors(array, array, k=2),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
