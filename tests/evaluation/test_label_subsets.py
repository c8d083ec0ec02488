"""Subsets of labels: shares by hand, nesting over many draws, lists of names."""

import numpy as np
import pytest

from distill.errors import DistillError
from distill.evaluation.label_subsets import (
    class_balanced_subset,
    held_out_rows,
    named_images,
    read_names,
)

PATHS = ["a/x_1.png", "a/x_2.png", "b/y_1.png", "b/deep/y_2.png", "b/same.png", "a/same.png"]


def counts(labels: np.ndarray, fraction: float, seed: int = 0) -> list[int]:
    chosen = class_balanced_subset(labels, fraction, seed=seed)
    return np.bincount(labels[chosen], minlength=labels.max() + 1).tolist()


def test_largest_remainders_by_hand():
    labels = np.repeat([0, 1, 2], [14, 17, 19])  # a tenth: 1.4, 1.7, 1.9; five in all
    assert counts(labels, 0.1) == [1, 2, 2]
    assert counts(labels, 1.0) == [14, 17, 19]
    assert counts(np.repeat([0, 1], [16, 22]), 0.1) == [2, 2]  # 3.8 are four


def test_every_class_gives_one_and_no_more_for_it():
    labels = np.repeat([0, 1, 2], [2, 3, 95])  # a tenth: 0.2, 0.3, 9.5; ten in all
    assert counts(labels, 0.1) == [1, 1, 9]
    assert counts(labels, 0.001) == [1, 1, 1]
    # A class that got its one has no remainder left: 0.6 + 0.6 + 2.8 of 40 is 4.
    assert counts(np.repeat([0, 1, 2], [6, 6, 28]), 0.1) == [1, 1, 2]


def test_a_class_number_without_images():
    assert counts(np.repeat([0, 2], [10, 10]), 0.2) == [2, 0, 2]
    # Nor does it use up an image of the total: five of 50.
    assert counts(np.repeat([0, 2, 3], [14, 17, 19]), 0.1) == [1, 0, 2, 2]


def test_equal_remainders_fall_by_the_seed():
    labels = np.repeat(np.arange(4), 15)  # a tenth: 1.5 each, six in all
    found = {tuple(counts(labels, 0.1, seed)) for seed in range(20)}
    assert all(sum(one) == 6 and set(one) == {1, 2} for one in found)
    assert len(found) > 1


@pytest.mark.parametrize("seed", range(10))
def test_one_percent_lies_in_ten_percent(seed: int):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(12), rng.integers(1, 400, size=12)))
    few = class_balanced_subset(labels, 0.01, seed=seed)
    more = class_balanced_subset(labels, 0.1, seed=seed)
    assert set(few) <= set(more)
    assert list(few) == sorted(set(few))
    for chosen, fraction in ((few, 0.01), (more, 0.1)):
        shares = np.bincount(labels[chosen], minlength=12)
        quotas = fraction * np.bincount(labels)
        assert (shares >= np.maximum(1, np.floor(quotas))).all()
        assert (shares <= np.maximum(1, np.ceil(quotas))).all()


def test_the_seed_decides():
    labels = np.repeat(np.arange(3), 100)
    first = class_balanced_subset(labels, 0.1, seed=0)
    assert (first == class_balanced_subset(labels, 0.1, seed=0)).all()
    assert (first != class_balanced_subset(labels, 0.1, seed=1)).any()


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, 2.0, float("nan")])
def test_shares_out_of_range(fraction: float):
    with pytest.raises(DistillError, match="it must be a share above 0 and at most 1"):
        class_balanced_subset(np.array([0, 1]), fraction, seed=0)


def test_held_out_rows_are_a_part_of_every_class_that_can_give():
    labels = np.repeat([0, 1, 2], [1, 5, 44])
    fitted, held_out = held_out_rows(labels, seed=0)
    assert sorted([*fitted, *held_out]) == list(range(50))
    assert np.bincount(labels[held_out], minlength=3).tolist() == [0, 1, 4]
    with pytest.raises(DistillError, match="no class has two"):
        held_out_rows(np.array([0, 1, 2]), seed=0)


def test_names_are_found_by_file_name_and_by_path():
    found = named_images(["y_1.png", "a/x_2.png", "y_2.png", "b/same.png"], PATHS, source="list")
    assert found.tolist() == [1, 2, 3, 4]
    assert named_images(["x_1.png", "a/x_1.png"], PATHS, source="list").tolist() == [0]


def test_names_that_are_missing_are_counted():
    with pytest.raises(DistillError, match=r"^few.txt: 2 of 3 names .* the first is z_1.png;"):
        named_images(["z_1.png", "x_1.png", "z_2.png"], PATHS, source="few.txt")


def test_a_name_that_several_images_have():
    with pytest.raises(DistillError, match=r"several training images are called same.png"):
        named_images(["x_1.png", "same.png"], PATHS, source="few.txt")


def test_reading_a_list(tmp_path):
    (tmp_path / "few.txt").write_text("a.png\n\n  b.png \n")
    assert read_names(tmp_path / "few.txt") == ["a.png", "b.png"]
    with pytest.raises(DistillError, match=r"neither a number nor a list .* \(No such file"):
        read_names(tmp_path / "absent.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DistillError, match=r"\(not text\)"):
        read_names(tmp_path / "binary.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DistillError, match="names no image"):
        read_names(tmp_path / "empty.txt")
