import numpy as np
import pytest

from distill.embeddings.search import (
    require_k,
    require_ks,
    require_labels,
    require_seed,
    require_splits,
)
from distill.errors import DistillError


def test_labels_that_are_missing_in_part():
    with pytest.raises(DistillError, match="2 of 3 labels of photos are missing"):
        require_labels(np.array([-1, 4, -1]), what="photos")
    with pytest.raises(DistillError, match="photos have no labels"):
        require_labels(np.zeros(0, int), what="photos")


def test_both_splits_are_looked_at():
    good, labels = np.eye(3), np.array([0, 1, 1])
    require_splits(good, labels, good[:1], labels[:1])  # one class is enough to count on
    for arguments, message in (
        ((good, labels * 0, good, labels), "the training images are of 1 class"),
        ((good, labels, good, labels - 1), "1 of 3 labels of the validation images are missing"),
        ((good, labels[:2], good, labels), "3 embeddings and 2 labels of the training images"),
        ((good, labels, good[:1], labels), "1 embeddings and 3 labels of the validation images"),
        ((good, labels, good[:, :2], labels), "are 3 wide and the validation embeddings 2"),
    ):
        with pytest.raises(DistillError, match=message):
            require_splits(*arguments)


def test_numbers_of_neighbors():
    require_k(4, most=4)
    require_ks([1, 4], most=4)
    with pytest.raises(DistillError, match="no k was given, name one or more between 1 and"):
        require_ks([], most=4)
    with pytest.raises(DistillError, match="k is 5, it must be between 1 and the number of others"):
        require_ks([1, 5], most=4, what="the number of others")


def test_seeds():
    require_seed(0)
    for seed in (-1, 2**31):
        with pytest.raises(DistillError, match=f"the seed is {seed}, it must be between"):
            require_seed(seed)
