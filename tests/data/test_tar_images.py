"""Images in tar shards are the images of a folder, wherever the shards lie."""

from __future__ import annotations

import io
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset
from PIL import Image

from distill.data.shards import TarImages
from distill.data.sources import open_images
from distill.errors import BadImageError, DistillError

pytestmark = pytest.mark.usefixtures("own_cache")


def encoded(value: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (value, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def write(tar_of):
    def write_shard(folder: Path, name: str, samples: dict[str, bytes]) -> str:
        (folder / name).write_bytes(tar_of(samples))
        return str(folder / name)

    return write_shard


def test_samples_and_classes(tmp_path, write):
    samples = {
        **{"n1/a.png": encoded(10), "n1/a.cls": b"2", "n1/a.json": b"{}"},
        **{"n1/b.cls": b" 0\n", "n1/b.seg.png": encoded(99), "n1/b.jpg": encoded(20, "JPEG")},
        **{"c.txt": b"no image", "c.cls": b"7"},
        **{"d.JPEG": encoded(30, "JPEG"), "d.cls": b"1"},
    }
    images = TarImages([write(tmp_path, "x.tar", samples)], name="x")
    assert [int(np.asarray(images.load(i))[0, 0, 0]) // 10 for i in range(3)] == [1, 2, 3]
    assert images.labels.tolist() == [2, 0, 1]
    assert images.classes == ("0", "1", "2")
    assert images.describe(1) == f"{tmp_path}/x.tar/n1/b"


def test_what_webdataset_writes(tmp_path, write):
    with webdataset.ShardWriter(str(tmp_path / "train-%03d.tar"), maxcount=4, verbose=0) as sink:
        for number in range(10):
            picture = Image.new("RGB", (8, 6), (number * 20, 0, 0))
            sink.write({"__key__": f"s{number:04d}", "png": picture, "cls": number % 3})
    data = open_images(str(tmp_path))
    assert (data.name, data.val, len(data.train)) == (tmp_path.name, None, 10)
    assert data.train.labels.tolist() == [number % 3 for number in range(10)]
    found = [int(np.asarray(data.train.load(i))[0, 0, 0]) for i in range(10)]
    assert found == [number * 20 for number in range(10)]
    assert len(open_images(f"{tmp_path}/train-{{000..001}}.tar").train) == 8


def test_an_object_store(tmp_path, tar_of):
    file_system = fsspec.filesystem("memory")
    file_system.store.clear()
    for split, values in (("train-0", (1, 2)), ("train-1", (3,)), ("val-0", (2,))):
        samples = {}
        for value in values:
            samples |= {f"{value}.png": encoded(value), f"{value}.cls": str(value).encode()}
        file_system.pipe(f"/bucket/set/{split}.tar", tar_of(samples))
    data = open_images("memory://bucket/set")
    assert (data.name, len(data.train), len(data.val)) == ("set", 3, 1)
    assert data.val.classes == data.train.classes == ("0", "1", "2", "3")
    assert data.train.describe(2) == "memory://bucket/set/train-1.tar/3"
    assert np.asarray(data.val.load(0))[0, 0, 0] == 2
    assert open_images("memory://bucket/set/train-{0..1}.tar").train.labels.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ({"a.txt": b"x"}, "no image in 1 shards"),
        ({"a.png": encoded(1), "a.cls": b"dog"}, "has the class b'dog'; a .cls file holds a"),
        ({"a.png": encoded(1), "a.cls": b"-1"}, "has the class b'-1'"),
        ({"a.png": encoded(1), "a.cls": b"9" * 15}, "has the class b'999"),
        ({"a.png": encoded(1), "a.cls": b"1", "b.png": encoded(1)}, "1 of 2 images have no .cls"),
    ],
)
def test_shards_that_are_refused(tmp_path, samples, words, write):
    with pytest.raises(DistillError, match=words):
        TarImages([write(tmp_path, "x.tar", samples)], name="x")


def test_validation_classes_are_those_of_training(tmp_path, write):
    write(tmp_path, "train-0.tar", {"a.png": encoded(1), "a.cls": b"0"})
    write(tmp_path, "val-0.tar", {"a.png": encoded(1), "a.cls": b"4"})
    with pytest.raises(DistillError, match=r"an image of class 4, and .* has 1 classes"):
        open_images(str(tmp_path))


def test_images_that_cannot_be_read_are_named(tmp_path, write):
    url = write(tmp_path, "x.tar", {"a.png": encoded(1)[:40], "b.png": b"", "c.png": encoded(3)})
    images = TarImages([url], name="x")
    for i, key in enumerate("ab"):
        with pytest.raises(BadImageError, match=rf"x\.tar/{key}"):
            images.load(i)
    images.load(2)


def test_the_fingerprint_follows_the_content(tmp_path, write):
    def fingerprint(name: str, samples: dict[str, bytes]) -> str:
        return TarImages([write(tmp_path, name, samples)], name="x").fingerprint()

    first = fingerprint("x.tar", {"a.bmp": encoded(1, "BMP")})
    assert fingerprint("y.tar", {"a.bmp": encoded(1, "BMP")}) == first
    assert fingerprint("z.tar", {"a.bmp": encoded(2, "BMP")}) != first  # of the same size
    assert fingerprint("v.tar", {"b.bmp": encoded(1, "BMP")}) != first
