"""Sets of images: what loads, what is refused under which name, what makes two sets the same."""

import errno
import os
import pickle
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from distill.data import images as images_module
from distill.data.images import ArrayImages, FolderImages, evenly_spaced
from distill.errors import BadImageError, DistillError

FILES = ["a/0.png", "a/1.png", "b/0.png"]


@pytest.fixture
def folder(write_image, tmp_path):
    for seed, name in enumerate(FILES):
        write_image(f"one/{name}", seed=seed)
    return tmp_path / "one"


def test_files_load_in_order_under_their_names(tmp_path, write_image):
    files = ["a/x.png", "b/é y.png", "z.jpg"]
    for seed, file in enumerate(files):
        write_image(file, size=(5 + seed, 4))
    images = FolderImages(tmp_path, files, [0, 1, 1], ["a", "b"], name="set")
    assert [images.relative_path(i) for i in range(len(images))] == files
    assert images.describe(1) == str(tmp_path / "b" / "é y.png")
    assert [images.load(i).size for i in range(3)] == [(5, 4), (6, 4), (7, 4)]
    assert images.relative_path(-1) == "z.jpg"
    with pytest.raises(IndexError):
        images.relative_path(3)
    assert images.labels.dtype == np.int64


def test_file_names_need_not_be_utf8():
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    assert FolderImages("/data", ["a.jpg", name], name="set").relative_path(1) == name


def test_files_take_little_more_memory_than_their_paths():
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


def test_arrays_in_gray_and_color():
    gray = ArrayImages(np.full((2, 4, 4), 7, np.uint8), name="gray")
    assert gray.load(1).getpixel((0, 0)) == (7, 7, 7)
    assert gray.describe(1) == "gray[1]"
    color = np.zeros((1, 4, 4, 3), np.uint8)
    color[..., 2] = 9
    assert ArrayImages(color, [0], ["a"], name="color").load(0).getpixel((0, 0)) == (0, 0, 9)
    with pytest.raises(DistillError, match="1 labels for 2 images"):
        ArrayImages(np.zeros((2, 4, 4), np.uint8), [0], ["a"], name="array")


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((2, 4, 4)), np.zeros((2, 3, 4, 4), np.uint8), np.zeros((2, 4), np.uint8)],
)
def test_arrays_of_another_kind_are_refused(pixels):
    with pytest.raises(DistillError, match="must be uint8"):
        ArrayImages(pixels, name="array")


def test_evenly_spaced():
    assert evenly_spaced(3) == [0, 1, 2]
    spaced = evenly_spaced(1_281_167)
    assert (len(spaced), spaced[0], spaced[-1]) == (2000, 0, 1_281_166)
    assert set(np.diff(spaced)) <= {640, 641}


def of_files(root, files=FILES, **settings) -> str:
    return FolderImages(root, files, name="photos", **settings).fingerprint()


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_files_are_the_same_elsewhere_and_with_labels(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "two")
    labeled = of_files(folder, labels=[0, 1, 0], classes=["a", "b"])
    assert of_files(folder) == of_files(tmp_path / "two") == labeled


def test_content_names_order_and_number_of_files_count(folder):
    orders = (FILES, FILES[:2], [FILES[1], FILES[0], FILES[2]])
    found = {of_files(folder, files) for files in orders}
    os.rename(folder / "b/0.png", folder / "b/1.png")
    found.add(of_files(folder, [*FILES[:2], "b/1.png"]))
    found.add(of_files(folder))  # one is missing
    os.rename(folder / "b/1.png", folder / "b/0.png")
    flip_last_bit(folder / "a/1.png")  # of the same size
    found.add(of_files(folder))
    assert len(found) == 6


def test_sizes_of_all_files_and_content_of_some_count(folder, monkeypatch):
    monkeypatch.setattr(images_module, "MAX_READ", 2)  # the first and the last
    before = of_files(folder)
    flip_last_bit(folder / FILES[1])
    assert of_files(folder) == before  # the documented limit
    for name in (FILES[0], FILES[2]):
        flip_last_bit(folder / name)
        assert of_files(folder) != before
        flip_last_bit(folder / name)
    with (folder / FILES[1]).open("ab") as file:
        file.write(b"x")
    assert of_files(folder) != before


def test_pixels_of_arrays_and_their_shape_count():
    pixels = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)

    def of_pixels(array, **settings) -> str:
        return ArrayImages(array, name="x", **settings).fingerprint()

    changed = pixels.copy()
    changed[1, 3, 5, 2] += 1
    different = [pixels, pixels[::-1], changed, pixels.reshape(2, 6, 4, 3), pixels[:1]]
    assert len({of_pixels(array) for array in different}) == 5
    assert of_pixels(pixels) == of_pixels(np.asfortranarray(pixels), labels=[1, 1])
