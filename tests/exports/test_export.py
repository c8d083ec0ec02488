"""The comparison of a file with its network, on embeddings that are made up."""

import math

import numpy as np
import pytest
import torch

from distill.data.images import ArrayImages
from distill.errors import BadImageError, DistillError
from distill.exports.export import compare_outputs, milliseconds_per_image, real_pixels
from distill.models.networks import InputSpec

PIXELS = torch.arange(12.0).view(12, 1, 1, 1).expand(12, 3, 2, 2) + 1


def flat(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.flatten(1)


def compare(original, exported, pixels=PIXELS) -> tuple[float, float]:
    return compare_outputs(original, exported, pixels, what="a.onnx")


def test_the_difference_by_hand_in_batches_of_1_3_and_8_images():
    """Rows are (i, ..., i), twelve numbers, of length i sqrt(12)."""
    seen = []

    def off(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels[:, 0, 0, 0].tolist())
        rows = flat(pixels).clone()
        rows[rows[:, 0] == 2, 5] += 4e-5  # 4e-5 / (2 sqrt(12)) of the row's length
        rows[rows[:, 0] == 8, 1] -= 6e-5  # the largest number, 6e-5 / (8 sqrt(12))
        return rows

    absolute, relative = compare(flat, off)
    assert relative == pytest.approx(4e-5 / (2 * math.sqrt(12)), rel=0.01)
    assert absolute == pytest.approx(6e-5, rel=0.01)
    assert seen == [[1], [2, 3, 4], [5, 6, 7, 8, 9, 10, 11, 12]]
    compare(flat, off, PIXELS[:2])
    assert [len(batch) for batch in seen[3:]] == [1, 3, 8]


@pytest.mark.parametrize("factor", [1 + 2e-4, -1, 0, math.nan, math.inf])
def test_a_mismatch_is_an_error(factor: float):
    with pytest.raises(DistillError, match=r"a\.onnx does not compute what the network computes"):
        compare(flat, lambda pixels: factor * flat(pixels))


def test_one_wrong_row_in_one_batch_is_an_error_and_9e_5_is_none():
    def wrong(pixels: torch.Tensor, factor: float) -> torch.Tensor:
        rows = flat(pixels).clone()
        if len(rows) == 8:
            rows[-1] *= factor
        return rows

    with pytest.raises(DistillError, match=r"differ by 0\.001 of their length and 0\.0001 is"):
        compare(flat, lambda pixels: wrong(pixels, 1.001))
    assert 8e-5 < compare(flat, lambda pixels: wrong(pixels, 1 + 9e-5))[1] < 1e-4


def test_rows_of_zeros():
    def dead(pixels: torch.Tensor) -> torch.Tensor:
        return 0 * flat(pixels)

    assert compare(dead, dead) == (0, 0)
    with pytest.raises(DistillError, match="differ by inf"):
        compare(dead, lambda pixels: dead(pixels) + 1e-9)


def test_another_shape_or_dtype_and_a_network_that_is_not_finite():
    with pytest.raises(DistillError, match=r"float64 \(1, 12\) where .* torch.float32 \(1, 12\)"):
        compare(flat, lambda pixels: flat(pixels).double())
    with pytest.raises(DistillError, match=r"float32 \(1, 11\)"):
        compare(flat, lambda pixels: flat(pixels)[:, 1:])
    with pytest.raises(DistillError, match="the network's embeddings of its own images are not"):
        compare(lambda pixels: flat(pixels) * math.nan, flat)


def test_timed_functions_take_turns_on_a_full_batch(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls = []

    def function(name: str):
        return lambda pixels: calls.append((name, len(pixels)))

    times = milliseconds_per_image([function("a"), function("b")], PIXELS[:3], batch_size=32)
    assert times == [1000 / 32, 1000 / 32]
    assert calls == [("a", 32), ("b", 32)] * 4  # one round that does not count, at least three


def test_images_are_evenly_spaced_and_bad_ones_are_passed_over(monkeypatch):
    spec = InputSpec(image_size=4, crop_fraction=1.0)
    pixels = np.arange(101, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    images = ArrayImages(pixels, np.zeros(101, np.int64), ["a"], name="gray")
    real = real_pixels(images, spec, number=5)
    assert (real.dtype, real.shape) == (torch.float32, (5, 3, 4, 4))
    expected = torch.tensor([0, 25, 50, 75, 100]) / 255
    torch.testing.assert_close(real[:, 2, 3, 3], expected, rtol=0, atol=1e-7)
    load = images.load

    def sometimes(i: int):
        if i != 50:
            raise BadImageError("no")
        return load(i)

    monkeypatch.setattr(images, "load", sometimes)
    assert real_pixels(images, spec, number=5)[:, 0, 0, 0].tolist() == [pytest.approx(50 / 255)]
    with pytest.raises(DistillError, match=r"none of 2 images of gray can be read.*--data"):
        real_pixels(images, spec, number=2)
