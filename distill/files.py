"""Files on disk: atomic writes, locks, names from strangers, bounded tar files, the cache folder.

A reader of what `atomic_path`, `atomic_write` and `atomic_folder` write sees the old content or the
new one, never a part. `tarfile` reads extended headers whole, whatever size they claim, and tries
every decompressor, of which a few bytes of xz claim gigabytes; `open_tar` reads plain files and
gzip within bounded memory.
"""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import filelock

from distill.errors import DistillError

MAX_READ = 16 * 2**20  # bytes at once; headers have some hundreds, or thousands with attributes
_GZIP = b"\x1f\x8b"
_MAX_NAME = 255  # bytes, as file systems have it


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; when all went well, flush it and rename it to `path`.

    A failed write leaves the old file.

    Raises:
        OSError: The disk refuses; ESTALE where the folder has gone, as a mount may.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what new files get; some writers make them private
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # gigabytes, perhaps, on a disk that is full
        if isinstance(error, OSError):  # writing to an open file does not even say which
            error.filename = str(path)
        if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
            # As a network file system says of a mount that went away.
            raise OSError(errno.ESTALE, "its folder is gone", str(path)) from error
        raise
    sync_folder(path.parent)


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` to `path` by `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a renamed file keeps its name when the power fails."""
    with suppress(OSError):  # not every file system and system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def atomic_folder(folder: Path, *, last: str) -> Iterator[Path]:
    """Yield a folder for files that belong together; when all went well, rename them to `folder`.

    After a failure none of them is there, nor is `folder` if it was made for them.

    Args:
        folder: Where the files shall lie; its own folder exists.
        last: The file that is renamed last, because it speaks of the others.
    """
    was_there = folder.exists()
    folder.mkdir(exist_ok=True)
    staging = None
    try:
        staging = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
        yield staging
        for file in sorted(staging.iterdir(), key=lambda file: (file.name == last, file.name)):
            with file.open("rb") as content:
                os.fsync(content.fileno())
            file.replace(folder / file.name)
        was_there = True
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if not was_there:
            with suppress(OSError):  # another process put something there
                folder.rmdir()


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Keep other processes out while a file is read, changed and written.

    For files to which several processes add; all of them must lock. On a file system without locks
    nobody is kept out.
    """
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()


def require_file_place(path: Path, *, flag: str, example: str) -> None:
    """Refuse a path that no file can be written to, before there is anything to write.

    Args:
        path: Of the file.
        flag: That it was given with.
        example: A file name of the kind.

    Raises:
        DistillError: It is a folder, or lies in one that is not there.
    """
    if path.is_dir() or not path.parent.is_dir():
        problem = "is a folder" if path.is_dir() else "lies in a folder that is not there"
        raise DistillError(f"{flag} {path} {problem}; name a file such as {example}")


def cache_folder() -> Path:
    """Return where downloads, embeddings and measured plans lie, which may be removed at any time.

    $DISTILL_CACHE, else $XDG_CACHE_HOME/distill, else ~/.cache/distill; it need not exist yet.
    """
    if os.environ.get("DISTILL_CACHE"):
        return Path(os.environ["DISTILL_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill"


def is_file_name(name: str) -> bool:
    """Say whether a name that someone else wrote is that of a file in a folder, and no path."""
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        return False
    try:
        return len(os.fsencode(name)) <= _MAX_NAME
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can spell
        return False


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
