from pathlib import Path

import numpy as np
import pytest
import torchvision

from distill.data.images import ArrayImages
from distill.data.sources import (
    ImageData,
    default_augmentation,
    default_pretraining_augmentation,
    hold_out,
    open_images,
)
from distill.errors import DistillError, UnknownNameError

ORACLES = Path(__file__).parents[1] / "oracles"


def test_digits_are_split_as_in_the_oracle():
    data = open_images("Digits")
    oracle = np.load(ORACLES / "evaluation_digits.npz")
    assert (data.native_size, data.horizontal_flip) == (8, False)
    assert data.train.classes == tuple("0123456789")
    for part, images in (("train", data.train), ("val", data.val)):
        np.testing.assert_array_equal(images.labels, oracle[f"{part}_labels"])
        rows = np.stack([np.asarray(images.load(i))[:, :, 0].ravel() for i in range(len(images))])
        assert rows.max() == 255
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(rows, oracle[f"{part}_features"], atol=2e-3)


def test_mirroring_follows_the_data():
    images = ArrayImages(np.zeros((1, 4, 4), np.uint8), name="set")
    for flip, augmentation, kind in ((True, "crop-flip", "photo"), (False, "crop", "glyph")):
        data = ImageData("set", images, None, horizontal_flip=flip)
        assert default_augmentation(data) == augmentation
        assert default_pretraining_augmentation(data) == kind


@pytest.mark.parametrize(("spec", "nearest"), [("cifar1O", "CIFAR10"), ("image-net", "ImageNet")])
def test_unknown_names_get_the_nearest_and_the_folder_remedy(spec, nearest):
    with pytest.raises(UnknownNameError, match=f"did you mean '{nearest}'.*as in ./photos"):
        open_images(spec)


def test_folder_by_path_name_and_relative_path(tmp_path, write_image, monkeypatch):
    write_image("photos/train/a/1.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spec in (tmp_path / "photos", "photos", "./photos", "~/photos", "photos/../photos/"):
        data = open_images(spec)
        assert (data.name, data.native_size, data.horizontal_flip) == ("photos", None, True)
        assert data.train.describe(0) == str(tmp_path / "photos" / "train" / "a" / "1.png")


def test_a_dataset_name_wins_over_a_folder_of_that_name(tmp_path, write_image, monkeypatch):
    write_image("digits/1.png")
    monkeypatch.chdir(tmp_path)
    assert len(open_images("digits").train) == 1437
    assert len(open_images("./digits").train) == 1


def test_missing_folder_and_file_in_its_place(tmp_path, write_image):
    with pytest.raises(DistillError, match=r"no such folder: .*gone.*CIFAR10"):
        open_images(tmp_path / "gone")
    with pytest.raises(DistillError, match="is a file, not a folder"):
        open_images(str(write_image("1.png")))


class FakeDataset:
    """Stands in for the download: present once `download` has been asked for."""

    url = "https://example.org/cifar.tar.gz"
    roots: list[Path] = []
    offline = False
    classes = ["cat", "dog"]

    def __init__(self, root, download, train=None, split=None):
        if download and self.offline:
            raise OSError("no route to host")
        if not download and root not in self.roots:
            raise RuntimeError("Dataset not found")
        self.roots.append(root)
        number = 4 if train or split == "train" else 2
        pixels = np.arange(number * 12, dtype=np.uint8).reshape(number, 2, 2, 3)
        self.data = pixels if split is None else pixels.transpose(0, 3, 1, 2)
        self.targets = self.labels = [0, 1] * (number // 2)


@pytest.fixture
def fake_downloads(monkeypatch):
    fake = type("Fake", (FakeDataset,), {"roots": []})
    for name in ("CIFAR10", "STL10"):
        monkeypatch.setattr(torchvision.datasets, name, fake)
    return fake


@pytest.mark.parametrize("name", ["CIFAR10", "STL10"])
def test_torchvision_datasets_are_downloaded_to_the_named_root(
    fake_downloads, tmp_path, monkeypatch, name
):
    monkeypatch.setenv("DISTILL_DATA_ROOT", str(tmp_path / "env"))
    data = open_images(name.lower())
    assert set(fake_downloads.roots) == {tmp_path / "env"}
    assert (data.name, len(data.train), len(data.val)) == (name, 4, 2)
    assert (data.native_size, data.horizontal_flip) == (2, True)
    assert data.train.labels.tolist() == [0, 1, 0, 1]
    assert data.train.load(1).getpixel((1, 0)) == (15, 16, 17)
    open_images(name, download_root=tmp_path)
    assert fake_downloads.roots[-1] == tmp_path


def test_failed_download_says_where_to_put_the_files(fake_downloads, tmp_path):
    fake_downloads.offline = True
    with pytest.raises(DistillError, match=r"no route to host.*example\.org") as caught:
        open_images("CIFAR10", download_root=tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_imagenet_is_a_folder_below_the_root(tmp_path, write_image):
    with pytest.raises(DistillError, match="ImageNet cannot be downloaded: put its train/"):
        open_images("imagenet", download_root=tmp_path)
    write_image("imagenet/train/n01/1.png")
    assert open_images("imagenet", download_root=tmp_path).train.classes == ("n01",)


def labeled(labels):
    pixels = np.zeros((len(labels), 2, 2), np.uint8)
    return ArrayImages(pixels, labels, [str(i) for i in range(100)], name="set")


def test_hold_out_is_disjoint_sorted_complete_and_deterministic():
    images = labeled(np.arange(1000) % 7)
    kept, held = hold_out(images, 0.1, seed=3)
    assert kept.dtype == held.dtype == np.int64
    assert len(held) == 100
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(1000))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()
    np.testing.assert_array_equal(hold_out(images, 0.1, seed=3)[1], held)
    assert not np.array_equal(hold_out(images, 0.1, seed=4)[1], held)


def test_hold_out_takes_its_share_of_every_class():
    labels = np.repeat([0, 1, 2, 5], [500, 300, 20, 180])
    np.random.default_rng(0).shuffle(labels)
    _, held = hold_out(labeled(labels), 0.2, seed=0)
    assert np.bincount(labels[held]).tolist() == [100, 60, 4, 0, 0, 36]


def test_hold_out_without_labels():
    images = ArrayImages(np.zeros((50, 2, 2), np.uint8), name="set")
    kept, held = hold_out(images, 0.3, seed=0)
    assert (len(kept), len(held)) == (35, 15)


@pytest.mark.parametrize(
    ("labels", "fraction", "num_held"),
    [
        ([0, 0, 1, 1], 0.0, 0),
        ([0, 0], 0.01, 1),
        ([0, 0], 0.99, 1),
        ([0], 0.5, 0),
        ([], 0.5, 0),
        ([0, 1, 2, 3], 0.5, 2),
    ],
)
def test_hold_out_at_the_limits(labels, fraction, num_held):
    kept, held = hold_out(labeled(np.array(labels, int)), fraction, seed=0)
    assert (len(held), len(kept)) == (num_held, len(labels) - num_held)


def test_hold_out_leaves_lone_images_in_training():
    for seed in range(20):
        _, held = hold_out(labeled(np.array([0, 1, 2, 2, 2, 2])), 0.3, seed=seed)
        assert set(held.tolist()) <= {2, 3, 4, 5}


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_hold_out_refuses_fractions_out_of_range(fraction):
    with pytest.raises(DistillError, match="must be in"):
        hold_out(labeled([0, 1]), fraction, seed=0)
