"""Opens tar files of others, plain or in gzip, within bounded memory.

`tarfile` reads extended headers whole, whatever size they claim, and would try every decompressor:
a few bytes of xz claim gigabytes of dictionary.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

MAX_READ = 16 * 2**20  # bytes at once; headers have some hundreds, or thousands with attributes
_GZIP = b"\x1f\x8b"


class _BoundedReads:
    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self._stream.read(size)


@contextmanager
def open_tar(stream: IO[bytes]) -> Iterator[tarfile.TarFile]:
    """Open a tar file without compression.

    Raises:
        tarfile.TarError: It is none, or has a header of more than `MAX_READ` bytes.
    """
    bounded = cast("IO[bytes]", _BoundedReads(stream))
    with tarfile.open(fileobj=bounded, mode="r:") as file:
        yield file


@contextmanager
def open_tar_file(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar file, plain or in gzip; see `open_tar`.

    Raises:
        OSError, EOFError, zlib.error: It cannot be read, or is cut or damaged.
    """
    with path.open("rb") as plain:
        is_compressed = plain.read(len(_GZIP)) == _GZIP
        plain.seek(0)
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=plain)) if is_compressed else plain
        with open_tar(stream) as file:
            yield file
