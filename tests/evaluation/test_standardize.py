"""Standardized rows against numpy's float64, from arrays and from memory maps."""

import numpy as np
import pytest
import torch

from distill.errors import DistillError
from distill.evaluation import linear_heads as module
from distill.evaluation.linear_heads import StandardizedRows, fit_standardizer, require_finite

CPU = torch.device("cpu")


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(1.0, 2.0, size=(50, 7)).astype(np.float32)


def expected(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    unit = features.astype(np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    fitted = unit[rows]
    return (unit - fitted.mean(0)) / np.sqrt(fitted.var(0, ddof=1) + 1e-5)


def test_rows_are_standardized_by_the_statistics_of_the_fitted_ones(features):
    rows = np.arange(0, 50, 3)
    standardizer = fit_standardizer(features, rows, device=CPU)
    found = StandardizedRows(features, np.arange(50), standardizer, device=CPU)
    np.testing.assert_allclose(
        found(np.array([4, 9, 2])), expected(features, rows)[[4, 9, 2]], rtol=1e-4, atol=1e-5
    )


def test_chunks_and_lack_of_memory_change_nothing(features, monkeypatch):
    rows = np.array([3, 1, 8, 40])
    whole = StandardizedRows(
        features, rows, fit_standardizer(features, rows, device=CPU), device=CPU
    )
    monkeypatch.setattr(module, "_CHUNK_BYTES", 3 * 4 * 7)
    monkeypatch.setattr(module, "free_memory", lambda device: 0)
    parts = StandardizedRows(
        features, rows, fit_standardizer(features, rows, device=CPU), device=CPU
    )
    assert whole._all is not None
    assert parts._all is None
    assert len(parts) == 4
    places = np.array([1, 3])
    np.testing.assert_allclose(parts(places), whole(places), rtol=1e-5, atol=1e-6)


def test_held_rows_are_those_of_their_places_in_several_chunks(features, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 3 * 4 * 7)
    rows = np.arange(49, -1, -1)
    standardizer = fit_standardizer(features, rows, device=CPU)
    found = StandardizedRows(features, rows, standardizer, device=CPU)
    assert found._all is not None
    np.testing.assert_allclose(
        found(np.arange(50)), expected(features, rows)[::-1], rtol=1e-4, atol=1e-5
    )


def test_half_precision_memory_maps(features, tmp_path):
    np.save(tmp_path / "rows.npy", features.astype(np.float16))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    rows = np.arange(50)
    standardizer = fit_standardizer(mapped, rows, device=CPU)
    found = StandardizedRows(mapped, rows, standardizer, device=CPU)(rows)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(
        found, expected(features.astype(np.float16), rows), rtol=1e-4, atol=1e-5
    )


def test_a_constant_dimension_says_nothing():
    features = np.zeros((6, 3), np.float32)
    features[:, 0] = [1, 1, 1, 1, 2, 2]
    features[:, 1] = [1, 2, 3, 4, 5, 6]
    standardizer = fit_standardizer(features, np.arange(6), device=CPU)
    assert standardizer.scale[2] == 0
    assert (standardizer.scale[:2] > 0).all()
    other = standardizer(torch.tensor([[0.0, 1.0, 5.0]]))
    assert other.isfinite().all()
    assert other[0, 2] == 0
    same = np.tile(np.random.default_rng(0).normal(size=(1, 5)), (4, 1)).astype(np.float32)
    assert (fit_standardizer(same, np.arange(4), device=CPU).scale == 0).all()


def test_a_row_of_zeros_and_a_single_row():
    features = np.zeros((2, 3), np.float32)
    features[1] = 1
    assert fit_standardizer(features, np.arange(2), device=CPU).mean.isfinite().all()
    assert fit_standardizer(features, np.array([1]), device=CPU).scale.isfinite().all()


def test_rows_that_are_not_finite_are_counted_over_chunks(features, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 3 * 4 * 7)
    require_finite(features)
    features[[2, 30], 1] = np.nan
    features[49, 0] = np.inf
    with pytest.raises(DistillError, match="3 of 50 embeddings are not finite"):
        require_finite(features)
