"""Folders: which files are images, in which order, of which class; what is refused."""

import os

import pytest

from distill.data.folders import list_images, read_splits
from distill.errors import DistillError


def files_of(images):
    return [images.relative_path(i) for i in range(len(images))]


@pytest.fixture
def write(write_image):
    def write_all(*names):
        for name in names:
            write_image(name)

    return write_all


def test_class_folders_are_sorted_and_searched_at_any_depth(tmp_path, write):
    names = ["b/2.png", "b/1.JPEG", "b/deep/er/0.jpg", "a/x.png", "C/y.PNG"]
    write(*(f"train/{name}" for name in [*names, "a/.h.png", ".cache/2.png", "a/.thumbs/3.png"]))
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    train, val = read_splits(tmp_path)
    assert val is None
    assert train.classes == ("C", "a", "b")  # code points: capitals first
    assert files_of(train) == ["C/y.PNG", "a/x.png", "b/1.JPEG", "b/2.png", "b/deep/er/0.jpg"]
    assert train.labels.tolist() == [0, 1, 2, 2, 2]
    assert train.load(4).mode == "RGB"


def test_order_does_not_depend_on_the_file_system(tmp_path, write, monkeypatch):
    write(
        "train/b/1.png", "train/b/sub/2.png", "train/a/3.png", "train/a/z/4.png", "elsewhere/6.png"
    )
    for link in ("first", "second"):  # one folder, reached twice: listed once, by the first name
        (tmp_path / "train" / "b" / link).symlink_to(tmp_path / "elsewhere")
    expected = files_of(read_splits(tmp_path)[0])
    assert expected[-3:] == ["b/1.png", "b/first/6.png", "b/sub/2.png"]
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(os, "scandir", Reversed)
    assert files_of(read_splits(tmp_path)[0]) == expected


def test_val_takes_the_labels_of_train_by_name(tmp_path, write):
    write("train/a/1.png", "train/b/1.png", "train/c/1.png", "val/c/1.png", "val/b/1.png")
    train, val = read_splits(tmp_path)
    assert val.classes == train.classes == ("a", "b", "c")
    assert val.labels.tolist() == [1, 2]
    assert val.name == f"{tmp_path.name}/val"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["train/b.png", "train/a.png"], ["a.png", "b.png"]),
        (["x/y/b.png", "a.png"], ["a.png", "x/y/b.png"]),
        (["odd.jpg/1.png"], ["odd.jpg/1.png"]),
    ],
)
def test_unlabeled_images(tmp_path, write, files, expected):
    write(*files)
    train, val = read_splits(tmp_path)
    assert (train.labels, train.classes, val) == (None, None, None)
    assert files_of(train) == expected


def test_unlabeled_validation_images(tmp_path, write):
    write("train/1.png", "val/2.png", "val/3.png")
    assert files_of(read_splits(tmp_path)[1]) == ["2.png", "3.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/a/1.png", "val/a/1.png", "val/dog/1.png"], r"train/ does not have: dog$"),
        (["train/a/1.png", "val/1.png"], r"no images in class folders of .*val"),
        (["train/a/1.png", "train/loose.png"], r"1 images \(loose\.png\)"),
        (["Train/a/1.png"], "Train/ where train/ is expected"),
        (["training/a/1.png"], "training/ where train/ is expected"),
        (["train/a/1.png", "valid/a/1.png"], "valid/ where val/ is expected"),
        (["train/a/1.png", "Validation/a/1.png"], "Validation/ where val/ is expected"),
    ],
)
def test_layouts_that_are_refused(tmp_path, write, files, message):
    write(*files)
    with pytest.raises(DistillError, match=message):
        read_splits(tmp_path)


def test_folders_without_images_are_named(tmp_path, write):
    with pytest.raises(DistillError, match=r"cannot list the folder .*gone"):
        read_splits(tmp_path / "gone")
    for folder in ("", "train", "train/h"):
        (tmp_path / folder).mkdir(exist_ok=True)
        with pytest.raises(DistillError, match="no images in"):
            read_splits(tmp_path)
    write("train/a/1.png")
    for name in "bcdefg":
        (tmp_path / "train" / name / "below").mkdir(parents=True)
    with pytest.raises(DistillError, match=r"without images in .*: b, c, d, e, f and 2 more"):
        read_splits(tmp_path)


def test_links_are_followed_and_loops_end(tmp_path, write):
    write("elsewhere/real.png", "photos/sub/1.png")
    photos = tmp_path / "photos"
    (photos / "linked.png").symlink_to(tmp_path / "elsewhere" / "real.png")
    (photos / "folder").symlink_to(tmp_path / "elsewhere")
    (photos / "sub" / "loop").symlink_to(photos)
    (photos / "broken.png").symlink_to(tmp_path / "missing.png")
    (photos / "itself.png").symlink_to(photos / "itself.png")
    expected = ["broken.png", "folder/real.png", "itself.png", "linked.png", "sub/1.png"]
    assert list_images(photos) == expected
