"""Corruptions: all of them at all severities, seeded, without a trace in numpy's generator."""

import sys

import numpy as np
import pytest

from distill.data import corruptions
from distill.data.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    prepare,
    require_corruptions,
)
from distill.errors import DistillError, UnknownNameError

RANDOM = (*CORRUPTIONS[:3], "glass_blur", "motion_blur", *CORRUPTIONS[7:10], "elastic_transform")


def picture(size: int) -> np.ndarray:
    """Return a smooth picture with edges, on which every corruption shows."""
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin(20 * x + 3 * y), np.cos(15 * y * x), np.sign(np.sin(25 * (x - y)))]
    return (110 + 80 * np.stack(waves, 2)).astype(np.uint8)


COMPILED = pytest.param("glass_blur", marks=pytest.mark.slow)  # by numba, which takes seconds


@pytest.mark.parametrize(
    "corruption", [COMPILED if name == "glass_blur" else name for name in CORRUPTIONS]
)
def test_each_is_seeded_and_grows_with_severity(corruption):
    image, size_of_change = picture(64), []
    before = image.copy()
    for severity in (SEVERITIES[0], SEVERITIES[-1]):
        first = corrupt(image, corruption, severity, seed=2**32 - 1)
        np.random.random()  # whatever happens in between
        again = corrupt(image, corruption, severity, seed=2**32 - 1)
        assert (first.shape, first.dtype) == (image.shape, np.uint8)
        assert first.flags.writeable  # torch warns of others
        np.testing.assert_array_equal(first, again)
        other = corrupt(image, corruption, severity, seed=1)
        assert (other != first).any() == (corruption in RANDOM)
        size_of_change.append(np.abs(first.astype(int) - image).mean())
    assert size_of_change[-1] > size_of_change[0] > 0
    np.testing.assert_array_equal(image, before)


def test_numpys_generator_goes_on_as_if_nothing_had_been():
    np.random.seed(5)
    expected = np.random.random(4)
    np.random.seed(5)
    found = np.random.random(2)
    corrupt(picture(32), "gaussian_noise", 1, seed=9)
    np.testing.assert_array_equal(np.append(found, np.random.random(2)), expected)


@pytest.mark.parametrize(
    ("corruption", "severity", "by_hand"),
    [
        # 0.4 of the distance from the channel's mean stays; the mean of 0 and 200 is 100.
        ("contrast", 1, [60, 140]),
        # A tenth is added to the value (HSV) of a gray pixel: 25.5 of 255, cut to whole numbers.
        ("brightness", 1, [25, 225]),
    ],
)
def test_severity_one_by_hand(corruption, severity, by_hand):
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 200
    found = corrupt(image, corruption, severity, seed=0)
    np.testing.assert_allclose(found[0, [0, -1], 0], by_hand, atol=1)


def test_the_package_is_named_with_its_version():
    assert prepare(["fog"]).startswith("imagecorruptions-imaug 1.")


def test_mistakes_are_sentences():
    with pytest.raises(UnknownNameError, match=r"'gausian_noise': did you mean 'gaussian_noise'"):
        require_corruptions(["gausian_noise"], [1])
    with pytest.raises(DistillError, match="severity is 6; it must be 1, 2, 3, 4 or 5"):
        require_corruptions(["fog"], [1, 6])
    with pytest.raises(DistillError, match="corruption fog is named twice"):
        require_corruptions(["fog", "snow", "fog"], [1])
    with pytest.raises(DistillError, match="severity 2 is named twice"):
        require_corruptions(["fog"], [2, 2])
    with pytest.raises(DistillError, match="31 x 31 pixels, corruptions need at least 32 x 32"):
        corrupt(picture(31), "fog", 1, seed=0)


def test_without_the_package_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(DistillError, match=r"pip install 'distill-vision\[robustness\]'"):
        prepare([])


def test_another_package_with_the_same_module_is_not_taken(monkeypatch):
    monkeypatch.setattr(corruptions, "PACKAGE", "imagecorruptions-not-here")
    with pytest.raises(DistillError, match="imagecorruptions-not-here"):
        corrupt(picture(32), "fog", 1, seed=0)
