"""Reads parts of tar shards, on a disk or in an object store, without unpacking anything.

A shard is addressed as fsspec addresses it: a path, or a URL such as `s3://bucket/train-000.tar`;
`filecache::s3://...` keeps whole shards on the local disk. What lies where in a shard is found
once, by its headers, and kept in the cache folder under its address and size.

Deliberate limits: tar files without compression, in which a part can be found; names of members are
not trusted to be paths, nothing is written under them.

Images in tar shards, as WebDataset writes them.

Files of a sample share the part of their name before the first dot of its last part, and follow
each other: `a/0001.jpg`, `a/0001.cls`. The first image of a sample is taken; `.cls` holds its class
as a number. Image i is a shard, an offset and a size, the same in every process and every run, so
that order, views, embeddings, distribution over ranks and resuming are those of any other set.

Deliberate limit: images are read one at a time, each with a request of its own where they lie in an
object store; `filecache::` before the address fetches whole shards instead.
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
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, Any

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
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_FORMAT = 1
_TIMES = ("ETag", "etag", "LastModified", "updated", "mtime", "created")  # by file system


@dataclass(frozen=True)
class Members:
    """The files of a shard.

    Attributes:
        names: Of each, as the shard gives it.
        offsets: Of its first byte in the shard, int64.
        sizes: In bytes, int64.
    """

    names: Sequence[str]
    offsets: np.ndarray
    sizes: np.ndarray


class ShardFiles:
    """Shards that are read in parts, from any process; some of them stay open.

    What a process holds open is its own: nothing of it is pickled or survives a fork.

    Args:
        urls: Of the shards.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = tuple(urls)
        self._opened: OrderedDict[int, IO[bytes]] = OrderedDict()  # the last one used is last
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"urls": self.urls, "_opened": OrderedDict(), "_process": -1}

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Return a part of a shard.

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
            self._opened[shard] = open(  # noqa: SIM115
                self.urls[shard], "rb", buffering=0
            )
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


def is_local(url: str) -> bool:
    """Say whether it is a path of this machine."""
    return "://" not in url and "::" not in url


def expanded(pattern: str) -> list[str]:
    """Return the addresses that a pattern stands for, in order.

    Args:
        pattern: With braces around numbers, `{000..146}`, or words, `{a,b}`, or with `*`.

    Raises:
        DistillError: Braces that say nothing, more than a million shards, or no file for `*`.
    """
    parts = _BRACES.split(pattern)
    choices: list[list[str]] = []
    total = 1
    for place, part in enumerate(parts):
        found = [part] if place % 2 == 0 else _alternatives(part, pattern)
        total *= len(found)
        if total > MAX_SHARDS:
            raise DistillError(f"{pattern} stands for more than {MAX_SHARDS:,} shards")
        choices.append(found)
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
    chain, separator, _ = url.rpartition("::")  # such as filecache::
    with _explained(url):
        found = file_system.glob(path)
    return sorted(chain + separator + _with_protocol(url, one) for one in found)


def _with_protocol(url: str, path: str) -> str:
    protocol = url.rpartition("::")[2].partition("://")[0]
    return path if "://" in path else f"{protocol}://{path.removeprefix('/')}"


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DistillError(f"{url} cannot be opened: {error}") from error


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn whatever a file system raises into a sentence that names the shard."""
    try:
        yield
    except DistillError:
        raise
    except Exception as error:
        raise DistillError(f"{url} cannot be read: {error}") from error


def members_of(url: str) -> Members:
    """Return the files of a shard, from the cache folder where they were found before.

    Raises:
        DistillError: It cannot be read, is compressed, or is no whole tar file.
    """
    with _explained(url):
        kept = cache_folder() / "shards" / f"{_key(url)}.json"
        known = _known(kept)
        if known is not None:
            return known
        names, offsets, sizes = [], [], []
        for name, offset, length in _headers(url):
            names.append(name)
            offsets.append(offset)
            sizes.append(length)
        found = Members(names, np.array(offsets, np.int64), np.array(sizes, np.int64))
        _keep(kept, found)
        return found


def _key(url: str) -> str:
    """Return a hash of address, size and, as far as it is known, time of a shard."""
    if is_local(url):
        found = os.stat(url)
        parts = (os.path.abspath(url), found.st_size, found.st_mtime_ns)
    else:
        file_system, path = _file_system(url)
        about = file_system.info(path)
        parts = (url, about["size"], *(str(about.get(name)) for name in _TIMES))
    return hashlib.sha256("/".join(map(str, (_FORMAT, *parts))).encode()).hexdigest()[:24]


def _known(kept: Path) -> Members | None:
    try:
        content = parse_json(kept.read_bytes())
        names, offsets, sizes = content["names"], content["offsets"], content["sizes"]
        return Members(names, np.array(offsets, np.int64), np.array(sizes, np.int64))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None  # found again


def _keep(kept: Path, found: Members) -> None:
    content = {
        "names": list(found.names),
        "offsets": found.offsets.tolist(),
        "sizes": found.sizes.tolist(),
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(kept, json.dumps(content).encode())


def _headers(url: str) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of every ordinary file, without reading what lies between."""
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
                        yield member.name, member.offset_data, member.size
                    archive.members.clear()  # type: ignore[attr-defined]  # millions, perhaps
        except tarfile.TarError as error:
            raise DistillError(
                f"{url} is no whole tar file without compression ({error}); write it again"
            ) from error


_MAX_LABEL_BYTES = 20
_MAX_CLASSES = 1_000_000
_READ_LOCALLY, _READ_REMOTELY = 2000, 50  # images, for the fingerprint


class TarImages(Images):
    """Images of tar shards, in their order.

    Args:
        urls: Of the shards, see `distill.data.shards`.
        name: See `Images`.

    Raises:
        DistillError: A shard that cannot be read, no image, or labels of some images alone.
    """

    def __init__(self, urls: Sequence[str], *, name: str) -> None:
        self._files = ShardFiles(urls)
        shard, offset, size, keys, labels = [], [], [], [], []
        with progress_bar(len(urls), description=f"{name}: finding images") as bar:
            for number, url in enumerate(urls):
                for key, image, label in _samples(members_of(url)):
                    shard.append(number)
                    offset.append(image[0])
                    size.append(image[1])
                    keys.append(key)
                    labels.append(self._label(number, label, url))
                bar.update(1)
        if not shard:
            raise DistillError(f"{name}: no image in {len(urls)} shards, the first is {urls[0]}")
        self._shard = np.array(shard, np.int32)
        self._offset, self._size = np.array(offset, np.int64), np.array(size, np.int64)
        self._keys = np.array(keys)  # one block: not a million objects in every loader process
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
        """Return a hash of names, sizes and places of all images, and the content of some."""
        digest = hashlib.sha256(b"shards\n")
        for array in (self._keys, self._shard, self._offset, self._size):
            digest.update(np.ascontiguousarray(array).tobytes())
        most = _READ_LOCALLY if self.is_local else _READ_REMOTELY
        for i in evenly_spaced(len(self), most):
            digest.update(hashlib.sha256(self._content(i)).digest())
        return digest.hexdigest()

    def _content(self, i: int) -> bytes:
        return self._files.read(int(self._shard[i]), int(self._offset[i]), int(self._size[i]))

    def _label(self, shard: int, place: tuple[int, int] | None, url: str) -> int:
        if place is None:
            return -1
        text = self._files.read(shard, place[0], min(place[1], _MAX_LABEL_BYTES))
        try:
            label = int(text)
        except ValueError:
            label = -1
        if not 0 <= label < _MAX_CLASSES:
            raise DistillError(
                f"{url} has the class {text!r}; a .cls file holds a number from 0 to "
                f"{_MAX_CLASSES - 1:,}"
            )
        return label


Place = tuple[int, int]


def _samples(members: Members) -> list[tuple[str, Place, Place | None]]:
    """Return key, place of the image and place of the class of every sample with an image."""
    found: list[tuple[str, Place, Place | None]] = []
    current, image, label = "", None, None
    for name, offset, size in zip(
        members.names, members.offsets.tolist(), members.sizes.tolist(), strict=True
    ):
        folder, _, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if key != current:
            if image is not None:
                found.append((current, image, label))
            current, image, label = key, None, None
        if image is None and f".{ending}".lower() in EXTENSIONS:
            image = (offset, size)
        elif ending.lower() == "cls":
            label = (offset, size)
    if image is not None:
        found.append((current, image, label))
    return found


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
