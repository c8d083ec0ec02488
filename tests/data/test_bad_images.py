"""Images that cannot be read: counted, named, bounded."""

from __future__ import annotations

import numpy as np
import pytest

from distill.data.images import ArrayImages
from distill.data.sources import BadImages
from distill.errors import BadImageError


def images(number: int) -> ArrayImages:
    return ArrayImages(np.zeros((number, 2, 2, 3), np.uint8), name="zeros")


@pytest.mark.parametrize(("numbers", "most"), [([5], 10), ([1500], 15), ([800, 900], 17)])
def test_a_hundredth_may_be_skipped_and_at_least_ten(numbers, most):
    bad_images = BadImages("skip")
    for number in numbers:
        bad_images.good_indices(images(number))
    assert bad_images.most == most
    bad_images([f"{i:03d}" for i in range(most)])
    bad_images(["000", "001"])  # again, as in the next epoch
    with pytest.raises(BadImageError, match=f"{most + 1} images cannot be read, .* last"):
        bad_images(["x"])


def test_none_may_be_skipped():
    with pytest.raises(BadImageError, match="at most 0 may be skipped"):
        BadImages("skip", most=0)(["x"])


def test_what_was_skipped_before_counts_and_is_not_named_again(capsys):
    bad_images = BadImages("skip", most=2)
    bad_images.recall(["a"])
    bad_images(["a", "b"])
    assert capsys.readouterr().out.count("skipped") == 1
    with pytest.raises(BadImageError, match="at most 2 may be skipped"):
        bad_images(["c"])
