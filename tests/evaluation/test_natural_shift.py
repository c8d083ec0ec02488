"""Accuracy under natural shifts against counts by hand."""

import numpy as np
import pytest

from distill.errors import DistillError
from distill.evaluation.shifts import frame_accuracy, is_right


def test_any_accepted_class_is_right():
    accepted = np.array([[1, 0, 0, 0], [0, 1, 0, 1]], dtype=bool)
    row = np.array([0, 0, 1, 1, 1])
    predicted = np.array([0, 1, 1, 3, 2])
    assert is_right(predicted, row, accepted).tolist() == [True, False, True, True, False]


#            anchor 0: all right | 1: wrong two frames on | 2: itself wrong | 3: alone
ANCHOR = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 3])
OFFSET = np.array([-1, 0, 1, -1, 0, 1, 2, 0, 1, 0])
RIGHT = np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 1], dtype=bool)


@pytest.mark.parametrize(("k", "pm_k"), [(0, 3 / 4), (1, 3 / 4), (2, 2 / 4), (10, 2 / 4)])
def test_all_neighbors_within_k_frames_must_be_right(k, pm_k):
    found = frame_accuracy(RIGHT, ANCHOR, OFFSET, k=k)
    assert (found.anchor, found.pm_k, found.num_anchors) == (3 / 4, pm_k, 4)


def test_neighbors_before_count_like_those_after_and_order_does_not():
    order = np.random.default_rng(0).permutation(len(RIGHT))
    for k, pm_k in ((1, 3 / 4), (2, 2 / 4)):
        mirrored = frame_accuracy(RIGHT[order], ANCHOR[order], -OFFSET[order], k=k)
        assert (mirrored.anchor, mirrored.pm_k) == (3 / 4, pm_k)


def test_an_anchor_that_cannot_be_read_does_not_count():
    keep = np.arange(len(RIGHT)) != 1  # anchor 0 itself
    found = frame_accuracy(RIGHT[keep], ANCHOR[keep], OFFSET[keep], k=1)
    assert (found.anchor, found.pm_k, found.num_anchors) == (2 / 3, 2 / 3, 3)
    with pytest.raises(DistillError, match="no anchor can be read"):
        frame_accuracy(RIGHT[:1], ANCHOR[:1], OFFSET[:1], k=1)


def test_k_is_at_least_zero():
    with pytest.raises(DistillError, match="k is -1 frames; it must be at least 0"):
        frame_accuracy(RIGHT, ANCHOR, OFFSET, k=-1)
