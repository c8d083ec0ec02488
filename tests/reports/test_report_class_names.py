from pathlib import Path

import numpy as np
import pytest

from distill.data.images import ArrayImages
from distill.data.sources import ImageData
from distill.errors import DistillError
from distill.reports.gallery import read_class_names, rename_classes


def test_the_form_of_imagenets_lists(tmp_path: Path):
    file = tmp_path / "names.txt"
    file.write_text("n01440764 tench, Tinca tinca\n\n  n02102040\tEnglish springer\n")
    assert read_class_names(file) == {"n01440764": "tench", "n02102040": "English springer"}


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a b\nalone\n", "line 2: 'alone' has no name"), (b"\xff\xfe", "cannot be read")],
)
def test_files_that_are_refused(tmp_path: Path, content, words):
    file = tmp_path / "names.txt"
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
    bare = ArrayImages(pixels, name="t")
    rename_classes(ImageData("d", bare, None, None, False), {"a": "x"})
    assert bare.classes is None
