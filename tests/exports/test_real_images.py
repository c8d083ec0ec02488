import numpy as np
import pytest
import torch

from distill.data.images import ArrayImages
from distill.errors import BadImageError, DistillError
from distill.exports.export import real_pixels
from distill.models.networks import InputSpec

SPEC = InputSpec(image_size=4, crop_fraction=1.0)


def images(number: int) -> ArrayImages:
    pixels = np.arange(number, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    return ArrayImages(pixels, np.zeros(number, np.int64), ["a"], name="gray")


def test_evenly_spaced_images_between_0_and_1():
    found = real_pixels(images(101), SPEC, number=5)
    assert found.dtype == torch.float32
    assert found.shape == (5, 3, 4, 4)
    expected = torch.tensor([0, 25, 50, 75, 100]) / 255
    torch.testing.assert_close(found[:, 2, 3, 3], expected, rtol=0, atol=1e-7)


def test_a_small_set_gives_what_it_has():
    assert real_pixels(images(2), SPEC, number=12).shape[0] == 2


def test_bad_images_are_passed_over(monkeypatch):
    some = images(5)
    load = some.load

    def sometimes(i: int):
        if i != 3:
            raise BadImageError("no")
        return load(i)

    monkeypatch.setattr(some, "load", sometimes)
    assert real_pixels(some, SPEC, number=5)[:, 0, 0, 0].tolist() == [pytest.approx(3 / 255)]
    with pytest.raises(DistillError, match=r"none of 2 images of gray can be read.*--data"):
        real_pixels(some, SPEC, number=2)
