"""Images in tar shards are those of a folder, on a disk and in fsspec's memory file system."""

import io
import multiprocessing
import os
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset
from PIL import Image

from distill.data import shards
from distill.data.shards import ShardFiles, TarImages, expanded, is_local, members_of
from distill.data.sources import open_images
from distill.errors import BadImageError, DistillError
from distill.files import cache_folder

pytestmark = pytest.mark.usefixtures("own_cache")


FILES = {"a/1.jpg": b"one", "a/1.cls": b"3", "b" * 150 + ".jpg": b"x" * 1500, "empty.jpg": b""}


@pytest.fixture(params=["disk", "memory"])
def place(request, tmp_path):
    """Return a function that writes a shard and returns its address."""
    file_system = fsspec.filesystem("memory")
    file_system.store.clear()

    def write(name: str, content: bytes) -> str:
        if request.param == "disk":
            (tmp_path / name).write_bytes(content)
            return str(tmp_path / name)
        file_system.pipe(f"/bucket/{name}", content)
        return f"memory://bucket/{name}"

    return write


@pytest.mark.parametrize(
    ("pattern", "urls"),
    [
        ("x.tar", ["x.tar"]),
        ("x-{08..11}.tar", ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("s3://b/{000..001}.tar", ["s3://b/000.tar", "s3://b/001.tar"]),
    ],
)
def test_patterns(pattern, urls):
    assert expanded(pattern) == urls


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("x-{abc}.tar", "write numbers as {000..146} or words as {a,b}"),
        ("x-{3..1}.tar", "counts from 3 to 1; count up"),
        ("x-{0..99999999999}.tar", "count up, to a million"),
        ("{0..9999}{0..9999}.tar", "more than 1,000,000 shards"),
        ("absent/x-*.tar", "no file matches absent/x-\\*.tar"),
    ],
)
def test_patterns_that_say_nothing(pattern, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DistillError, match=words):
        expanded(pattern)


def test_stars_find_files_in_order(place):
    urls = [place(f"train-{number}.tar", b"") for number in (2, 0, 1)]
    place("val-0.tar", b"")
    assert expanded(urls[0].replace("train-2", "train-*")) == sorted(urls)


def test_members_and_their_bytes(place, tar_of):
    url = place("x.tar", tar_of(FILES))
    found = members_of(url)
    assert [member.name for member in found] == list(FILES)
    files = ShardFiles([url])
    for content, member in zip(FILES.values(), found, strict=True):
        assert files.read(0, member.offset, member.size) == content
    with pytest.raises(OSError, match="ends before byte"):
        files.read(0, 0, 10**7)


def test_what_was_found_is_kept_until_the_shard_changes(place, monkeypatch, tar_of):
    url = place("x.tar", tar_of(FILES))
    members_of(url)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_headers", None)
        assert [member.name for member in members_of(url)] == list(FILES)
    place("x.tar", tar_of({**FILES, "new.jpg": b"new" * 5000}))
    assert "new.jpg" in [member.name for member in members_of(url)]
    for kept in (cache_folder() / "shards").iterdir():
        kept.write_text("{")
    assert "new.jpg" in [member.name for member in members_of(url)]


@pytest.mark.parametrize("damage", ["missing", "compressed", "cut", "text"])
def test_a_shard_that_cannot_be_used_is_named(place, damage, tar_of):
    content = {
        "missing": b"",
        "compressed": tar_of(FILES, mode="w:gz"),
        "cut": tar_of(FILES)[:1800],
        "text": b"x" * 3000,
    }[damage]
    url = place("x.tar", content)
    if damage == "missing":
        url = url.replace("x.tar", "absent.tar")
    with pytest.raises(DistillError, match=r"(x|absent)\.tar (cannot be read|is no whole tar)"):
        members_of(url)


def test_an_unknown_protocol_is_named():
    assert not is_local("nosuch://bucket/x.tar")
    with pytest.raises(DistillError, match=r"nosuch://bucket/x\.tar cannot be"):
        members_of("nosuch://bucket/x.tar")


def _read_in_child(files: ShardFiles, place: tuple[int, int, int], answer) -> None:
    answer.put(files.read(*place))


def test_every_process_opens_for_itself(tmp_path: Path, tar_of):
    (tmp_path / "x.tar").write_bytes(tar_of(FILES))
    found = members_of(str(tmp_path / "x.tar"))
    files = ShardFiles([str(tmp_path / "x.tar")])
    place = (0, found[0].offset, 3)
    assert files.read(*place) == b"one"
    assert pickle.loads(pickle.dumps(files)).read(*place) == b"one"
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=_read_in_child, args=(files, place, answer))
    child.start()
    assert answer.get() == b"one"
    child.join()


def test_some_shards_stay_open_and_none_when_nobody_reads(tmp_path: Path, monkeypatch, tar_of):
    monkeypatch.setattr("distill.data.shards.MAX_OPEN", 3)
    urls = [str(tmp_path / f"{number}.tar") for number in range(8)]
    for url in urls:
        Path(url).write_bytes(tar_of(FILES))
    offset = members_of(urls[0])[0].offset
    before, files = os.listdir("/proc/self/fd"), ShardFiles(urls)
    for shard in (*range(8), 0, 7, *range(8)):
        assert files.read(shard, offset, 3) == b"one"
        assert len(os.listdir("/proc/self/fd")) <= len(before) + 3
    assert len(os.listdir("/proc/self/fd")) == len(before) + 3
    del files
    assert len(os.listdir("/proc/self/fd")) == len(before)


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
