import os

import pytest

from distill.data.folders import list_images, read_splits
from distill.errors import DistillError


def files_of(images):
    return [images.relative_path(i) for i in range(len(images))]


def test_class_folders_are_sorted_and_searched_at_any_depth(tmp_path, write_image):
    for name in ["b/2.png", "b/1.JPEG", "b/deep/er/0.jpg", "a/x.png", "C/y.PNG", "a/.h.png"]:
        write_image(f"train/{name}")
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    train, val = read_splits(tmp_path)
    assert val is None
    assert train.classes == ("C", "a", "b")  # code points: capitals first
    assert files_of(train) == ["C/y.PNG", "a/x.png", "b/1.JPEG", "b/2.png", "b/deep/er/0.jpg"]
    assert train.labels.tolist() == [0, 1, 2, 2, 2]
    assert train.load(4).mode == "RGB"


def test_order_does_not_depend_on_the_file_system(tmp_path, write_image, monkeypatch):
    for name in ["b/1.png", "b/sub/2.png", "a/3.png", "a/z/4.png", "a/y/5.png"]:
        write_image(f"train/{name}")
    write_image("elsewhere/6.png")
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


def test_val_takes_the_labels_of_train_by_name(tmp_path, write_image):
    for name in ["train/a/1.png", "train/b/1.png", "train/c/1.png", "val/c/1.png", "val/b/1.png"]:
        write_image(name)
    train, val = read_splits(tmp_path)
    assert val.classes == train.classes == ("a", "b", "c")
    assert val.labels.tolist() == [1, 2]
    assert val.name == f"{tmp_path.name}/val"


def test_val_classes_that_train_lacks_are_named(tmp_path, write_image):
    for name in ["train/a/1.png", "val/a/1.png", "val/dog/1.png", "val/cat/1.png"]:
        write_image(name)
    with pytest.raises(DistillError, match=r"train/ does not have: cat, dog$"):
        read_splits(tmp_path)


def test_flat_val_beside_class_folders_is_refused(tmp_path, write_image):
    write_image("train/a/1.png")
    write_image("val/1.png")
    with pytest.raises(DistillError, match=r"no images in class folders of .*val"):
        read_splits(tmp_path)


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_unlabeled_images(tmp_path, write_image, prefix):
    write_image(f"{prefix}b.png")
    write_image(f"{prefix}a.png")
    train, val = read_splits(tmp_path)
    assert (train.labels, train.classes, val) == (None, None, None)
    assert files_of(train) == ["a.png", "b.png"]


def test_folder_without_train_is_unlabeled_at_any_depth(tmp_path, write_image):
    write_image("x/y/b.png")
    write_image("a.png")
    assert files_of(read_splits(tmp_path)[0]) == ["a.png", "x/y/b.png"]


def test_empty_class_folders_are_named(tmp_path, write_image):
    write_image("train/a/1.png")
    for name in "bcdefgh":
        (tmp_path / "train" / name / "below").mkdir(parents=True)
    with pytest.raises(DistillError, match=r"without images in .*: b, c, d, e, f and 2 more"):
        read_splits(tmp_path)


@pytest.mark.parametrize("folders", [[], ["train"], ["train/a", "train/b"]])
def test_no_images_at_all(tmp_path, folders):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(DistillError, match="no images in"):
        read_splits(tmp_path)


def test_images_beside_class_folders_are_refused(tmp_path, write_image):
    write_image("train/a/1.png")
    write_image("train/loose.png")
    with pytest.raises(DistillError, match=r"1 images \(loose\.png\)"):
        read_splits(tmp_path)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("Train", "train/"), ("training", "train/"), ("valid", "val/"), ("Validation", "val/")],
)
def test_nearly_right_names_are_pointed_out(tmp_path, write_image, folder, expected):
    write_image(f"{folder}/a/1.png")
    if expected == "val/":
        write_image("train/a/1.png")
    with pytest.raises(DistillError, match=f"{folder}/ where {expected} is expected"):
        read_splits(tmp_path)


def test_links_are_followed_and_loops_end(tmp_path, write_image):
    write_image("elsewhere/real.png")
    write_image("photos/sub/1.png")
    photos = tmp_path / "photos"
    (photos / "linked.png").symlink_to(tmp_path / "elsewhere" / "real.png")
    (photos / "folder").symlink_to(tmp_path / "elsewhere")
    (photos / "sub" / "loop").symlink_to(photos)
    (photos / "broken.png").symlink_to(tmp_path / "missing.png")
    (photos / "itself.png").symlink_to(photos / "itself.png")
    assert list_images(photos) == [
        "broken.png",
        "folder/real.png",
        "itself.png",
        "linked.png",
        "sub/1.png",
    ]


def test_a_folder_named_like_an_image_is_a_folder(tmp_path, write_image):
    write_image("odd.jpg/1.png")
    assert list_images(tmp_path) == ["odd.jpg/1.png"]


def test_hidden_folders_are_skipped(tmp_path, write_image):
    write_image("train/a/1.png")
    write_image("train/.cache/2.png")
    write_image("train/a/.thumbs/3.png")
    train, _ = read_splits(tmp_path)
    assert (train.classes, len(train)) == (("a",), 1)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    with pytest.raises(DistillError, match=r"cannot list the folder .*gone"):
        read_splits(tmp_path / "gone")
