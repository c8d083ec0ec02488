import errno
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from distill.data.images import ArrayImages, FolderImages, Images, TorchvisionImages
from distill.errors import BadImageError, DistillError


def test_folder_images_load_and_name_each_file(tmp_path, write_image):
    files = ["a/x.png", "b/é y.png", "z.jpg"]
    for seed, file in enumerate(files):
        write_image(file, size=(5 + seed, 4))
    images = FolderImages(tmp_path, files, [0, 1, 1], ["a", "b"], name="set")
    assert len(images) == 3
    assert [images.relative_path(i) for i in range(3)] == files
    assert images.describe(1) == str(tmp_path / "b" / "é y.png")
    assert [images.load(i).size for i in range(3)] == [(5, 4), (6, 4), (7, 4)]
    assert images.relative_path(-1) == "z.jpg"
    with pytest.raises(IndexError):
        images.relative_path(3)
    assert images.labels is not None
    assert images.labels.dtype == np.int64


def test_folder_images_keep_names_that_are_not_utf8():
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    assert FolderImages("/data", ["a.jpg", name], name="set").relative_path(1) == name


def test_pickle_of_folder_images_is_about_as_large_as_the_paths():
    files = [f"class{i % 100}/image_{i:06}.jpg" for i in range(10_000)]
    images = FolderImages("/data", files, np.zeros(10_000, int), ["a"], name="set")
    copy = pickle.loads(pickle.dumps(images))
    assert [copy.relative_path(i) for i in range(0, 10_000, 999)] == files[::999]
    assert len(pickle.dumps(images)) < sum(map(len, files)) + 17 * len(files)
    assert sys.getsizeof(images._paths) < sum(map(len, files)) + 100


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    name = "x.tif" if mode == "CMYK" else "x.png"
    Image.new("RGB", (6, 5), (250, 0, 0)).convert(mode).save(tmp_path / name)
    image = FolderImages(tmp_path, [name], name="set").load(0)
    assert (image.mode, image.size) == ("RGB", (6, 5))


@pytest.mark.parametrize("name", ["gray.png", "gray.tif"])
def test_16_bit_gray_keeps_its_shades(tmp_path, name):
    Image.fromarray(np.array([[0, 1000, 40000, 65535]], np.uint16)).save(tmp_path / name)
    image = FolderImages(tmp_path, [name], name="set").load(0)
    assert np.asarray(image)[0, :, 0].tolist() == [0, 3, 156, 255]


def test_32_bit_gray_is_refused(tmp_path):
    Image.fromarray(np.array([[0.5, 2.0]], np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(BadImageError, match="32 bits per pixel"):
        FolderImages(tmp_path, ["x.tif"], name="set").load(0)


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "x.jpg", exif=exif)
    assert FolderImages(tmp_path, ["x.jpg"], name="set").load(0).size == (6, 4)


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp", "x.gif"])
def test_truncated_files_are_named(tmp_path, write_image, truncate, name):
    path = truncate(write_image(name, size=(64, 64)))
    with pytest.raises(BadImageError, match="cannot read image") as caught:
        FolderImages(tmp_path, [name], name="set").load(0)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"<html>", "not an image"), (None, "No such file")],
)
def test_what_is_no_image_is_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "x.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadImageError, match=f"{path}: {reason}"):
        FolderImages(tmp_path, ["x.jpg"], name="set").load(0)


def test_a_decompression_bomb_is_a_bad_image(tmp_path, write_image, monkeypatch):
    write_image("x.png", size=(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImageError, match=r"x\.png.*decompression bomb"):
        FolderImages(tmp_path, ["x.png"], name="set").load(0)


def test_running_out_of_file_handles_is_no_bad_image(tmp_path, write_image, monkeypatch):
    write_image("x.png")

    def fail(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match="Too many open files") as caught:
        FolderImages(tmp_path, ["x.png"], name="set").load(0)
    assert not isinstance(caught.value, BadImageError)


def test_array_images_in_gray_and_color():
    gray = ArrayImages(np.full((2, 4, 4), 7, np.uint8), name="gray")
    assert gray.load(1).getpixel((0, 0)) == (7, 7, 7)
    assert gray.describe(1) == "gray[1]"
    color = np.zeros((1, 4, 4, 3), np.uint8)
    color[..., 2] = 9
    assert ArrayImages(color, [0], ["a"], name="color").load(0).getpixel((0, 0)) == (0, 0, 9)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((2, 4, 4)), np.zeros((2, 3, 4, 4), np.uint8), np.zeros((2, 4), np.uint8)],
)
def test_arrays_of_another_kind_are_refused(pixels):
    with pytest.raises(DistillError, match="must be uint8"):
        ArrayImages(pixels, name="array")


def test_labels_must_match_the_images():
    with pytest.raises(DistillError, match="1 labels for 2 images"):
        ArrayImages(np.zeros((2, 4, 4), np.uint8), [0], ["a"], name="array")


class FakeDataset:
    classes = ("cat", "dog")

    def __init__(self, labels_name, *, decoded):
        setattr(self, labels_name, [1, 0])
        if decoded:
            self.data = np.zeros((2, 4, 4, 3), np.uint8)

    def __len__(self):
        return 2

    def __getitem__(self, i):
        if i == 1:
            raise OSError("image file is truncated")
        return Image.new("L", (4, 4), 5), 1


@pytest.mark.parametrize("labels_name", ["targets", "labels"])
@pytest.mark.parametrize("decoded", [True, False])
def test_torchvision_images(labels_name, decoded):
    images: Images = TorchvisionImages(FakeDataset(labels_name, decoded=decoded), name="fake")
    assert images.labels.tolist() == [1, 0]
    assert images.classes == ("cat", "dog")
    assert images.in_memory == decoded
    assert images.load(0).getpixel((0, 0)) == (5, 5, 5)
    with pytest.raises(BadImageError, match=r"fake\[1\]: image file is truncated"):
        images.load(1)
