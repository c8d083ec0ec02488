"""Class folders from elsewhere."""

import numpy as np
import pytest

from distill.data.shifted import open_shifted
from distill.errors import DistillError

CLASSES = ("class0", "class1", "class2")


def test_a_subset_of_the_training_classes(make_folder):
    folder = make_folder(num_val=4) / "val"
    for image in (folder / "class1").iterdir():
        image.unlink()
    (folder / "class1").rmdir()
    found = open_shifted(folder, CLASSES, None)
    assert found.name == "val"
    assert found.index.tolist() == list(range(8))
    assert found.present.tolist() == [0, 2]
    assert found.num_left_out == 0
    right = [np.flatnonzero(found.accepted[row]).tolist() for row in found.images.labels]
    assert right == 4 * [[0]] + 4 * [[2]]


def test_folders_that_a_map_leaves_out_do_not_count(make_folder):
    folder = make_folder(num_val=4) / "val"
    class_map = {"class0": ["class2"], "class2": ["class2", "class1"]}
    found = open_shifted(folder, CLASSES, class_map)
    assert found.index.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert found.present.tolist() == [1, 2]
    assert found.num_left_out == 1


def test_mistakes_are_sentences(make_folder, tmp_path):
    root = make_folder()
    with pytest.raises(DistillError, match=r"no such folder: .*gone; --shifted takes"):
        open_shifted(tmp_path / "gone", CLASSES, None)
    with pytest.raises(DistillError, match="holds no class folders"):
        open_shifted(root / "val" / "class0", CLASSES, None)
    with pytest.raises(DistillError, match="classes that the training images do not have: 'train'"):
        open_shifted(root, CLASSES, None)
