"""What makes two sets of images the same."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.data import images as fingerprint
from distill.data.images import ArrayImages, FolderImages, TorchvisionImages
from distill.data.sources import open_images

FILES = ["a/0.png", "a/1.png", "b/0.png"]


@pytest.fixture
def folder(write_image, tmp_path):
    for seed, name in enumerate(FILES):
        write_image(f"one/{name}", seed=seed)
    return tmp_path / "one"


def of(root: Path, files=FILES, **settings) -> str:
    return FolderImages(root, files, name="photos", **settings).fingerprint()


def test_the_same_files_elsewhere_and_labels(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "two")
    assert of(folder) == of(tmp_path / "two") == of(folder, labels=[0, 1, 0], classes=["a", "b"])
    assert len(of(folder)) == 64


def test_content_names_order_and_number_count(folder, write_image):
    found = {of(folder), of(folder, FILES[:2]), of(folder, [FILES[1], FILES[0], FILES[2]])}
    os.rename(folder / "b/0.png", folder / "b/1.png")
    found.add(of(folder, [*FILES[:2], "b/1.png"]))
    found.add(of(folder))  # one is missing
    os.rename(folder / "b/1.png", folder / "b/0.png")
    content = bytearray((folder / "a/1.png").read_bytes())
    content[-1] ^= 1
    (folder / "a/1.png").write_bytes(content)  # of the same size
    found.add(of(folder))
    assert len(found) == 6


def test_sizes_of_all_files_and_content_of_some(folder, monkeypatch):
    monkeypatch.setattr(fingerprint, "MAX_READ", 2)  # the first and the last
    before = of(folder)
    content = bytearray((folder / "a/1.png").read_bytes())
    content[-1] ^= 1
    (folder / "a/1.png").write_bytes(content)
    assert of(folder) == before  # the documented limit
    (folder / "a/1.png").write_bytes(content + b"x")
    assert of(folder) != before
    (folder / "a/1.png").write_bytes(content)
    for name in (FILES[0], FILES[2]):
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)
        assert of(folder) != before
        content[-1] ^= 1
        (folder / name).write_bytes(content)


def test_files_read_are_evenly_spaced():
    assert fingerprint.evenly_spaced(3) == [0, 1, 2]
    spaced = fingerprint.evenly_spaced(1_281_167)
    assert (len(spaced), spaced[0], spaced[-1]) == (2000, 0, 1_281_166)
    assert set(np.diff(spaced)) <= {640, 641}


def test_pixels_and_their_shape_count():
    pixels = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)

    def of_pixels(array, **settings) -> str:
        return ArrayImages(array, name="x", **settings).fingerprint()

    changed = pixels.copy()
    changed[1, 3, 5, 2] += 1
    different = [pixels, pixels[::-1], changed, pixels.reshape(2, 6, 4, 3), pixels[:1]]
    assert len({of_pixels(array) for array in different}) == 5
    assert of_pixels(pixels) == of_pixels(np.asfortranarray(pixels), labels=[1, 1])


class Dataset:
    """What torchvision's datasets have in common."""

    def __init__(self, images, **attributes):
        self.images = images
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], 0


def picture(color: int, side: int = 4) -> Image.Image:
    return Image.new("RGB", (side, side), (color, 0, 0))


def test_other_sets_by_name_length_and_pixels(monkeypatch):
    def of_images(*images, name="x") -> str:
        return TorchvisionImages(Dataset(list(images)), name=name).fingerprint()

    images = [picture(1), picture(2), picture(3)]
    different = {
        of_images(*images),
        of_images(*images, name="y"),
        of_images(*images[:2]),
        of_images(*images[::-1]),
        of_images(picture(1), picture(9), picture(3)),
        of_images(picture(1), picture(2, side=2), picture(3)),
        of_images(picture(1), None, picture(3)),
    }
    assert len(different) == 7
    assert of_images(*images) == of_images(*images) in different
    monkeypatch.setattr(fingerprint, "MAX_READ", 2)
    assert of_images(*images) == of_images(images[0], picture(9), images[2])


def test_sets_held_in_memory_by_their_pixels():
    data = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
    sets = [TorchvisionImages(Dataset([0, 1], data=array), name=name)
            for array, name in ((data, "x"), (data, "y"), (data[::-1], "x"))]  # fmt: skip
    assert sets[0].fingerprint() == sets[1].fingerprint() != sets[2].fingerprint()


def test_the_splits_of_the_digits_differ():
    data = open_images("digits")
    assert data.train.fingerprint() != data.val.fingerprint()
    assert data.train.fingerprint() == open_images("digits").train.fingerprint()
