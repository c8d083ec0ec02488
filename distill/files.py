"""Files on disk: atomic writes, locks, untrusted file names, bounded tar files, the cache folder.

Readers of a file written by `atomic_path`, `atomic_write` or `atomic_folder` see its old or its new
content, never a part. `tarfile` reads extended headers whole, whatever size they claim, and tries
every decompressor, with which a few bytes of xz can expand to gigabytes; `open_tar` reads plain
and gzip files within bounded memory.
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
    """Yield a temporary path next to `path`; on success, flush it and rename it to `path`.

    A failed write leaves the old file.

    Raises:
        OSError: The file cannot be written; ESTALE if its folder disappeared, as a mount may.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # the default mode; some writers make files private
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # possibly gigabytes on a full disk
        if isinstance(error, OSError):  # errors of an open file carry no name
            error.filename = str(path)
        if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
            # What a network file system reports for a lost mount.
            raise OSError(errno.ESTALE, "its folder is gone", str(path)) from error
        raise
    sync_folder(path.parent)


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` to `path` with `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power failure."""
    with suppress(OSError):  # not supported everywhere
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def atomic_folder(folder: Path, *, last: str) -> Iterator[Path]:
    """Yield a temporary folder; on success, move its files into `folder`.

    After a failure `folder` has none of the files, and is removed if it did not exist before.

    Args:
        folder: Destination; its parent exists.
        last: The file to move last, because it describes the others.
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
            with suppress(OSError):  # another process wrote to it
                folder.rmdir()


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Lock a file that several processes update; without effect where locks are not supported."""
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


def lock_folder(folder: Path, *, timeout: float = 0, instead: str = "") -> filelock.BaseFileLock:
    """Lock a folder against other processes that write to it; the caller releases the lock.

    Args:
        folder: An existing folder.
        timeout: Seconds to wait for another process.
        instead: What else the user can do, the end of the error message.

    Raises:
        DistillError: Another process holds the lock.
    """
    lock = filelock.FileLock(folder / ".lock", timeout=timeout)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise DistillError(
            f"{folder} is in use by another process; wait until it ends{instead}"
        ) from error
    return lock


def require_file_place(path: Path, *, flag: str, example: str) -> None:
    """Raise `DistillError` if `path`, given with `flag`, is a folder or its folder is missing."""
    if path.is_dir() or not path.parent.is_dir():
        problem = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise DistillError(f"{flag} {path} {problem}; name a file such as {example}")


def cache_folder() -> Path:
    """Return the folder of downloads, embeddings and kernel plans, which is safe to delete.

    $DISTILL_CACHE, else $XDG_CACHE_HOME/distill, else ~/.cache/distill; it may not exist yet.
    """
    if os.environ.get("DISTILL_CACHE"):
        return Path(os.environ["DISTILL_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill"


def is_file_name(name: str) -> bool:
    """Return whether an untrusted name is a plain file name, not a path."""
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        return False
    try:
        return len(os.fsencode(name)) <= _MAX_NAME
    except UnicodeEncodeError:  # a lone surrogate, which JSON allows
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
    """Open an uncompressed tar file.

    Raises:
        tarfile.TarError: It is not a tar file, or a header has more than `MAX_READ` bytes.
    """
    bounded = cast("IO[bytes]", _BoundedReads(stream))
    with tarfile.open(fileobj=bounded, mode="r:") as file:
        yield file


@contextmanager
def open_tar_file(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar file, plain or gzip; see `open_tar`.

    Raises:
        OSError, EOFError, zlib.error: It cannot be read, is truncated or damaged.
    """
    with path.open("rb") as plain:
        is_compressed = plain.read(len(_GZIP)) == _GZIP
        plain.seek(0)
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=plain)) if is_compressed else plain
        with open_tar(stream) as file:
            yield file
