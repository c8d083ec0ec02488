import math

import pytest
import torch

from distill.errors import DistillError
from distill.exports.export import compare_outputs as compare
from distill.exports.export import milliseconds_per_image

PIXELS = torch.arange(12.0).view(12, 1, 1, 1).expand(12, 3, 2, 2) + 1


def flat(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.flatten(1)


def test_the_difference_by_hand():
    """Rows are (i, ..., i), twelve numbers, of length i sqrt(12)."""

    def off(pixels: torch.Tensor) -> torch.Tensor:
        found = flat(pixels).clone()
        found[found[:, 0] == 2, 5] += 4e-5  # 4e-5 / (2 sqrt(12)) of the row's length
        found[found[:, 0] == 8, 1] -= 6e-5  # the largest number, 6e-5 / (8 sqrt(12))
        return found

    difference = compare(flat, off, PIXELS, what="a.onnx")
    assert difference.relative == pytest.approx(4e-5 / (2 * math.sqrt(12)), rel=0.01)
    assert difference.absolute == pytest.approx(6e-5, rel=0.01)
    assert compare(flat, flat, PIXELS, what="a.onnx").relative == 0


def test_batches_of_1_3_and_8_different_images():
    seen = []

    def spy(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels[:, 0, 0, 0].tolist())
        return flat(pixels)

    compare(flat, spy, PIXELS, what="a.onnx")
    assert seen == [[1], [2, 3, 4], [5, 6, 7, 8, 9, 10, 11, 12]]
    seen.clear()
    compare(flat, spy, PIXELS[:2], what="a.onnx")
    assert [len(batch) for batch in seen] == [1, 3, 8]


@pytest.mark.parametrize("factor", [1 + 2e-4, 1 - 2e-4, -1, 0, math.nan, math.inf])
def test_a_mismatch_is_an_error(factor: float):
    with pytest.raises(DistillError, match=r"a\.onnx does not compute what the network computes"):
        compare(flat, lambda pixels: factor * flat(pixels), PIXELS, what="a.onnx")


def test_one_wrong_row_in_one_batch_is_an_error():
    def wrong(pixels: torch.Tensor) -> torch.Tensor:
        found = flat(pixels).clone()
        if len(found) == 8:
            found[-1] *= 1.001
        return found

    with pytest.raises(DistillError, match=r"differ by 0\.001 of their length and 0\.0001 is"):
        compare(flat, wrong, PIXELS, what="a.onnx")


def test_a_difference_below_the_bound_is_kept():
    difference = compare(flat, lambda pixels: (1 + 9e-5) * flat(pixels), PIXELS, what="a.onnx")
    assert 8e-5 < difference.relative < 1e-4


def test_rows_of_zeros():
    def dead(pixels: torch.Tensor) -> torch.Tensor:
        return 0 * flat(pixels)

    assert compare(dead, dead, PIXELS, what="a.onnx").relative == 0
    with pytest.raises(DistillError, match="differ by inf"):
        compare(dead, lambda pixels: dead(pixels) + 1e-9, PIXELS, what="a.onnx")


def test_another_shape_or_dtype_is_an_error():
    with pytest.raises(DistillError, match=r"float64 \(1, 12\) where .* torch.float32 \(1, 12\)"):
        compare(flat, lambda pixels: flat(pixels).double(), PIXELS, what="a.onnx")
    with pytest.raises(DistillError, match=r"float32 \(1, 11\)"):
        compare(flat, lambda pixels: flat(pixels)[:, 1:], PIXELS, what="a.onnx")


def test_a_network_that_is_not_finite_is_not_the_file_s_fault():
    def broken(pixels: torch.Tensor) -> torch.Tensor:
        return flat(pixels) * math.nan

    with pytest.raises(DistillError, match="the network's embeddings of its own images are not"):
        compare(broken, broken, PIXELS, what="a.onnx")


def test_functions_take_turns_on_a_full_batch(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls = []

    def function(name: str):
        return lambda pixels: calls.append((name, len(pixels)))

    found = milliseconds_per_image([function("a"), function("b")], PIXELS[:3], batch_size=32)
    assert found == [1000 / 32, 1000 / 32]
    assert calls == [("a", 32), ("b", 32)] * 4  # one round that does not count, at least three
