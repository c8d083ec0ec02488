"""Images in tar shards as WebDataset writes them, on a disk or in an object store.

A shard is addressed as fsspec addresses it: a path, or a URL such as `s3://bucket/train-000.tar`;
`filecache::s3://...` keeps whole shards on the local disk. Nothing is unpacked: what lies where in
a shard is found once, by its headers, and kept in the cache folder under its address and size.

Files of a sample share the part of their name before the first dot of its last part, and follow
each other: `a/0001.jpg`, `a/0001.cls`. The first image of a sample is taken; `.cls` holds its class
as a number. Image i is a shard, an offset and a size, the same in every process and every run, so
that order, views, embeddings, distribution over ranks and resuming are those of any other set.

Limits: tar files without compression, in which a part can be found; images are read one at a time,
each with a request of its own where they lie in an object store. Names in a shard are labels: they
are never used as paths, nothing is written under them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from distill.data.folders import EXTENSIONS
from distill.data.images import Images, as_rgb, bad_image_errors, evenly_spaced
from distill.errors import BadImageError, DistillError
from distill.files import atomic_write, cache_folder, open_tar
from distill.parsing import parse_json
from distill.terminal import progress_bar

MAX_SHARDS = 1_000_000
MAX_OPEN = 128  # of 1,024 descriptors that a process usually may have
_MAX_LABEL_BYTES = 20
_MAX_CLASSES = 1_000_000
_READ_LOCALLY, _READ_REMOTELY = 2000, 50  # images, for the fingerprint
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_FORMAT = 2  # of what is kept
_TIMES = ("ETag", "etag", "LastModified", "updated", "mtime", "created")  # by file system


class TarImages(Images):
    """Images of tar shards, in their order.

    Args:
        urls: Addresses of the shards, see `expanded`.
        name: See `Images`.

    Raises:
        DistillError: A shard that cannot be read, no image, or labels of some images alone.
    """

    def __init__(self, urls: Sequence[str], *, name: str) -> None:
        self._files = ShardFiles(urls)
        shard, samples, labels = [], [], []
        with progress_bar(len(urls), description=f"{name}: finding images") as bar:
            for number, url in enumerate(urls):
                for sample in _samples(members_of(url)):
                    shard.append(number)
                    samples.append(sample)
                    labels.append(self._read_label(number, sample.label))
                bar.update(1)
        if not shard:
            raise DistillError(f"{name}: no image in {len(urls)} shards, the first is {urls[0]}")
        # Arrays: not a million objects in every loader process.
        self._shard = np.array(shard, np.int32)
        self._offset = np.array([sample.image.offset for sample in samples], np.int64)
        self._size = np.array([sample.image.size for sample in samples], np.int64)
        self._keys = np.array([sample.key for sample in samples])
        classes = _classes(labels, name)
        super().__init__(name, None if classes is None else labels, classes)

    @property
    def is_local(self) -> bool:
        """Whether all shards lie on a disk."""
        return all(map(is_local, self._files.urls))

    def num_bytes(self) -> int:
        """Return the size of all images as stored."""
        return int(self._size.sum())

    def __len__(self) -> int:
        return len(self._shard)

    def describe(self, i: int) -> str:
        """Return shard and key of image `i`."""
        return f"{self._files.urls[self._shard[i]]}/{self._keys[i]}"

    def load(self, i: int) -> Image.Image:
        """Decode image `i`; see `Images.load`."""
        with bad_image_errors(self.describe(i)):
            content = self._content(i)
            if not content:
                raise BadImageError("the file is empty")
            with Image.open(io.BytesIO(content)) as image:
                return as_rgb(image)

    def fingerprint(self) -> str:
        """Return the SHA-256, in hexadecimal, of names and places, and the content of some."""
        digest = hashlib.sha256(b"shards\n")
        for array in (self._keys, self._shard, self._offset, self._size):
            digest.update(np.ascontiguousarray(array).tobytes())
        most = _READ_LOCALLY if self.is_local else _READ_REMOTELY
        for i in evenly_spaced(len(self), most):
            digest.update(hashlib.sha256(self._content(i)).digest())
        return digest.hexdigest()

    def _content(self, i: int) -> bytes:
        return self._files.read(int(self._shard[i]), int(self._offset[i]), int(self._size[i]))

    def _read_label(self, shard: int, file: Member | None) -> int:
        if file is None:
            return -1
        text = self._files.read(shard, file.offset, min(file.size, _MAX_LABEL_BYTES))
        try:
            label = int(text)
        except ValueError:
            label = -1
        if not 0 <= label < _MAX_CLASSES:
            raise DistillError(
                f"{self._files.urls[shard]} has the class {text!r}; a .cls file holds a number "
                f"from 0 to {_MAX_CLASSES - 1:,}"
            )
        return label


class Member(NamedTuple):
    """A file in a shard: its name, the offset of its first byte, its size in bytes."""

    name: str
    offset: int
    size: int


class _Sample(NamedTuple):
    key: str
    image: Member
    label: Member | None


def _samples(members: Sequence[Member]) -> Iterator[_Sample]:
    """Yield every sample that has an image."""
    current, image, label = "", None, None
    for member in members:
        folder, _, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if key != current:
            if image is not None:
                yield _Sample(current, image, label)
            current, image, label = key, None, None
        if image is None and f".{ending}".lower() in EXTENSIONS:
            image = member
        elif ending.lower() == "cls":
            label = member
    if image is not None:
        yield _Sample(current, image, label)


def _classes(labels: list[int], name: str) -> list[str] | None:
    """Return class names, numbers as text, or None where no image has a class."""
    without = labels.count(-1)
    if without == len(labels):
        return None
    if without:
        raise DistillError(
            f"{name}: {without:,} of {len(labels):,} images have no .cls beside them; give every "
            "image its class, or none"
        )
    return [str(label) for label in range(max(labels) + 1)]


def members_of(url: str) -> list[Member]:
    """Return the files of a shard, from the cache folder where they were found before.

    Raises:
        DistillError: It cannot be read, is compressed, or is no whole tar file.
    """
    with _shard_errors(url):
        kept = cache_folder() / "shards" / f"{_key(url)}.json"
        try:
            rows = parse_json(kept.read_bytes())
            return [Member(str(name), int(offset), int(size)) for name, offset, size in rows]
        except (OSError, ValueError, TypeError):
            members = list(_headers(url))
        kept.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(kept, json.dumps(members).encode())
        return members


def _key(url: str) -> str:
    """Return a hash of address, size and, as far as it is known, time of a shard."""
    if is_local(url):
        status = os.stat(url)
        parts = (os.path.abspath(url), status.st_size, status.st_mtime_ns)
    else:
        file_system, path = _file_system(url)
        info = file_system.info(path)
        parts = (url, info["size"], *(str(info.get(name)) for name in _TIMES))
    return hashlib.sha256("/".join(map(str, (_FORMAT, *parts))).encode()).hexdigest()[:24]


def _headers(url: str) -> Iterator[Member]:
    """Yield every ordinary file, without reading what lies between the headers."""
    file: Any
    if is_local(url):
        file = open(url, "rb")  # noqa: SIM115
    else:
        file_system, path = _file_system(url)
        file = file_system.open(path, "rb")
    with file:
        try:
            with open_tar(file) as archive:
                for member in archive:
                    if member.isreg() and not member.issparse():
                        yield Member(member.name, member.offset_data, member.size)
                    archive.members.clear()  # type: ignore[attr-defined]  # millions, perhaps
        except tarfile.TarError as error:
            raise DistillError(
                f"{url} is no whole tar file without compression ({error}); write it again"
            ) from error


class ShardFiles:
    """Shards that are read in parts, from any process; some of them stay open.

    What a process holds open is its own: nothing of it is pickled or survives a fork.

    Args:
        urls: Addresses of the shards.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = tuple(urls)
        self._opened: OrderedDict[int, IO[bytes]] = OrderedDict()  # the last one used is last
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"urls": self.urls, "_opened": OrderedDict(), "_process": -1}

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Return `size` bytes of a shard.

        Raises:
            OSError: It cannot be read, or ends before.
        """
        url = self.urls[shard]
        if is_local(url):
            content = os.pread(self._file(shard).fileno(), size, offset)
        else:
            file_system, path = _file_system(url)
            content = file_system.cat_file(path, start=offset, end=offset + size)
        if len(content) < size:
            raise OSError(f"{url} ends before byte {offset + size}")
        return content

    def _file(self, shard: int) -> IO[bytes]:
        if self._process != os.getpid():
            self.close()
            self._process = os.getpid()
        if shard not in self._opened:
            self._opened[shard] = open(self.urls[shard], "rb", buffering=0)  # noqa: SIM115
        self._opened.move_to_end(shard)
        if len(self._opened) > MAX_OPEN:
            self._opened.popitem(last=False)[1].close()
        return self._opened[shard]

    def close(self) -> None:
        """Close what is open; a later `read` opens it again."""
        for file in self._opened.values():
            file.close()
        self._opened = OrderedDict()

    def __del__(self) -> None:
        self.close()


def expanded(pattern: str) -> list[str]:
    """Return the addresses that a pattern stands for, in order.

    >>> expanded("s3://bucket/train-{008..010}.tar")[1:]
    ['s3://bucket/train-009.tar', 's3://bucket/train-010.tar']

    Args:
        pattern: With braces around numbers, `{000..146}`, or words, `{a,b}`, or with `*`.

    Raises:
        DistillError: Braces that are not understood, more than a million shards, or no file for
            `*`.
    """
    choices: list[list[str]] = []
    total = 1
    for position, part in enumerate(_BRACES.split(pattern)):
        choices.append([part] if position % 2 == 0 else _alternatives(part, pattern))
        total *= len(choices[-1])
        if total > MAX_SHARDS:
            raise DistillError(f"{pattern} stands for more than {MAX_SHARDS:,} shards")
    urls = ["".join(words) for words in product(*choices)]
    if "*" not in pattern:
        return urls
    matched = [match for url in urls for match in matching(url)]
    if not matched:
        raise DistillError(f"no file matches {pattern}")
    return matched


def _alternatives(inside: str, pattern: str) -> list[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        if "," not in inside:
            raise DistillError(
                f"{pattern} has {{{inside}}}: write numbers as {{000..146}} or words as {{a,b}}"
            )
        return inside.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if last < first or last - first >= MAX_SHARDS:
        raise DistillError(f"{pattern} counts from {first} to {last}; count up, to a million")
    width = len(numbers[1])
    return [f"{number:0{width}d}" for number in range(first, last + 1)]


def matching(url: str) -> list[str]:
    """Return the addresses of the files that a pattern with `*` stands for, sorted."""
    if is_local(url):
        folder = Path(url).parent
        return sorted(str(path) for path in folder.glob(Path(url).name) if path.is_file())
    file_system, path = _file_system(url)
    chain, separator, target = url.rpartition("::")  # such as filecache::
    protocol = target.partition("://")[0]
    with _shard_errors(url):
        paths = file_system.glob(path)
    complete = (one if "://" in one else f"{protocol}://{one.removeprefix('/')}" for one in paths)
    return sorted(chain + separator + one for one in complete)


def is_local(url: str) -> bool:
    """Tell whether it is a path of this machine."""
    return "://" not in url and "::" not in url


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DistillError(f"{url} cannot be opened: {error}") from error


@contextmanager
def _shard_errors(url: str) -> Iterator[None]:
    """Turn whatever a file system raises into a sentence that names the shard."""
    try:
        yield
    except DistillError:
        raise
    except Exception as error:
        raise DistillError(f"{url} cannot be read: {error}") from error
