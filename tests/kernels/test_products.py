"""Both matrix products against float64, on every way they may take."""

import pytest
import torch

from distill.kernels.blocked import similarities, weighted_sums

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("shape", [(16, 1, 1), (48, 5, 3), (50, 5, 3), (512, 40, 7), (7, 3, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_they_are_matrix_products(num_threads, shape, dtype):
    n, D, R = shape
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(n, D, generator=generator).to(dtype)
    rows = torch.randn(R, D, generator=generator).to(dtype)
    weights = torch.randn(n, R, generator=generator).to(dtype)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        inner, sums = similarities(anchors, rows), weighted_sums(weights, anchors)
    finally:
        torch.set_num_threads(before)
    assert inner.dtype == sums.dtype == dtype
    expected = anchors.double() @ rows.double().T
    assert (inner.double() - expected).abs().max() <= tolerance * expected.abs().max()
    expected = weights.double().T @ anchors.double()
    assert (sums.double() - expected).abs().max() <= tolerance * expected.abs().max()
