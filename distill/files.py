"""Writes files that are whole or not there, and looks at names of files that others wrote."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import filelock

from distill.errors import DistillError

_MAX_NAME = 255  # bytes, as file systems have it


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


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Keep other processes out while a file is read, changed and written.

    It is for files of which every writer adds a part; all of them must come this way. Where the
    file system knows no locks nobody is kept out.
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


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path`; when all went well, flush it to the disk and rename it.

    A reader sees the old content or the new one; a failed write leaves the old.

    Raises:
        OSError: The disk refuses; ESTALE where the folder has gone, as a mount may.
    """
    with replaced_whole(path) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def replaced_whole(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` for a writer that wants one; otherwise as `written_whole`."""
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


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a renamed file keeps its name when the power fails."""
    with suppress(OSError):  # not every file system and system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` by `written_whole`."""
    with written_whole(path) as file:
        file.write(content)


@contextmanager
def written_together(folder: Path, *, last: str) -> Iterator[Path]:
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


def is_file_name(name: str) -> bool:
    """Say whether a name that someone else wrote is that of a file in a folder, and no path."""
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        return False
    try:
        return len(os.fsencode(name)) <= _MAX_NAME
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can spell
        return False
