"""Reads parts of tar shards, on a disk or in an object store, without unpacking anything.

A shard is addressed as fsspec addresses it: a path, or a URL such as `s3://bucket/train-000.tar`;
`filecache::s3://...` keeps whole shards on the local disk. What lies where in a shard is found
once, by its headers, and kept in the cache folder under its address and size.

Deliberate limits: tar files without compression, in which a part can be found; names of members are
not trusted to be paths, nothing is written under them.
"""

from __future__ import annotations

import hashlib
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

from distill.bounded_tar import open_tar
from distill.cache_folder import cache_folder
from distill.errors import DistillError
from distill.files import write_whole
from distill.parsing import parse_json

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
    write_whole(kept, json.dumps(content).encode())


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
