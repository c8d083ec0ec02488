from pathlib import Path

import numpy as np
import pytest

from distill.data.images import ArrayImages
from distill.data.sources import ImageData
from distill.embeddings.embed import Embeddings
from distill.errors import DistillError
from distill.reports.gallery import Gallery, read_class_names, rename_classes, without_own


def embedded(angles, index=None) -> Embeddings:
    """Return embeddings on the circle, at angles in degrees."""
    index = np.arange(len(angles)) if index is None else np.array(index)
    radians = np.deg2rad(np.asarray(angles, float))
    features = np.stack([np.cos(radians), np.sin(radians)], 1)
    return Embeddings(features, np.full(len(angles), -1), index, ())


def test_neighbors_are_numbers_of_the_set_nearest_first():
    gallery = Gallery(embedded([0, 90, 180, 270], [2, 5, 7, 9]), embedded([100, 5]), None, None)
    assert gallery.neighbors(2).tolist() == [[5, 7], [2, 5]]


def test_an_image_is_no_neighbor_of_itself():
    same = embedded([0, 10, 25, 180], [3, 4, 6, 8])
    gallery = Gallery(same, same, None, None)
    assert gallery.neighbors(2).tolist() == [[4, 6], [3, 6], [4, 3], [6, 4]]
    assert gallery.neighbors(5).shape == (4, 3)
    numbers = np.array([[1, 2, 3], [2, 1, 3], [4, 5, 6]])
    assert without_own(numbers, np.array([1, 1, 1])).tolist() == [[2, 3], [2, 3], [4, 5]]


def test_class_names_in_the_form_of_imagenets_lists(tmp_path: Path):
    file = tmp_path / "names.txt"
    file.write_text("n01440764 tench, Tinca tinca\n\n  n02102040\tEnglish springer\n")
    assert read_class_names(file) == {"n01440764": "tench", "n02102040": "English springer"}
    for content, words in ((b"a b\nalone\n", "line 2: 'alone' has no"), (b"\xff\xfe", "be read")):
        file.write_bytes(content)
        with pytest.raises(DistillError, match=words):
            read_class_names(file)
    with pytest.raises(DistillError, match="cannot be read"):
        read_class_names(tmp_path / "absent.txt")


def test_classes_without_a_name_keep_theirs():
    pixels = np.zeros((2, 4, 4), np.uint8)
    train, val = (ArrayImages(pixels, [0, 1], ["a", "b"], name=name) for name in ("t", "v"))
    rename_classes(ImageData("d", train, val, None, False), {"b": "bee", "c": "cat"})
    assert train.classes == val.classes == ("a", "bee")
