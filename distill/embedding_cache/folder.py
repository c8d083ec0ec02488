"""The folder of a cache: what its files are called, who may write, what to say when none may."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from distill.errors import DistillError

EMBEDDINGS, CHECKSUMS, MANIFEST = "embeddings.npy", "checksums.npy", "manifest.json"
LOCK = ".lock"
_HEADER_SIZE = 128  # of checksums.npy
OTHER_FOLDER = (
    "name another folder (--teacher-cache of training and distill cache, --cache of a measurement)"
)
ELSEWHERE = (
    "keep them elsewhere: set $DISTILL_CACHE to a folder (or, for a teacher's, name one with "
    "--teacher-cache, or keep none with --teacher-view student)"
)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one sentence with the remedy.

    Raises:
        DistillError: Instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise DistillError(
            f"{folder} cannot hold embeddings: {error.strerror or error}; {ELSEWHERE}"
        ) from error


@contextmanager
def locked(folder: Path, *, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Keep other processes from writing to the folder, which is made; wait for one that does.

    The operating system opens the lock when its holder dies.

    Args:
        folder: Of the cache.
        on_wait: Told once, in a sentence, when another process holds the lock.

    Raises:
        DistillError: The folder cannot be made or written to.
    """
    lock = filelock.FileLock(folder / LOCK)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            on_wait(f"{folder} is being filled by another process; waiting for it")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def remedied(folder: Path) -> Iterator[None]:
    """Add to what is said about a damaged cache what can be done about it."""
    try:
        yield
    except DistillError as error:
        raise DistillError(
            f"{error}; remove the folder {folder} and its embeddings are made again"
        ) from None


def require_space(folder: Path, num_bytes: int) -> None:
    """Refuse what is larger than the space that is free.

    Raises:
        DistillError: Naming the need, what is free, and the remedy.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise DistillError(
            f"{folder} cannot hold embeddings: they need {num_bytes / 2**30:.1f} GiB "
            f"and {free / 2**30:.1f} GiB are free; {ELSEWHERE}"
        )


def require_unused(folder: Path) -> None:
    """Refuse a folder for a new cache that holds more than an interrupted start of one.

    Raises:
        DistillError: It holds something else, or rows that were written.
    """
    ours = {EMBEDDINGS, CHECKSUMS, MANIFEST, LOCK}
    foreign = {path.name.removesuffix(".partial") for path in folder.iterdir()} - ours
    if foreign:
        raise DistillError(
            f"{folder} holds {min(foreign)}, which belongs to no embedding cache; " + OTHER_FOLDER
        )
    checksums = folder / CHECKSUMS
    if checksums.exists() and any(checksums.read_bytes()[_HEADER_SIZE:]):
        raise DistillError(
            f"{folder / MANIFEST} is missing; put it back, or remove the folder {folder} and its "
            "embeddings are made again"
        )
