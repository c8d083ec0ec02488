"""The folder of a cache: what its files are called, who may write, what to say when none may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from distill.errors import DistillError

EMBEDDINGS, CHECKSUMS, MANIFEST = "embeddings.npy", "checksums.npy", "manifest.json"
LOCK = ".lock"
ELSEWHERE = (
    "keep them elsewhere with --teacher-cache DIR or $DISTILL_CACHE, or keep none with "
    "--teacher-view student"
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
            f"{folder} cannot hold the teacher's embeddings: {error.strerror or error}; {ELSEWHERE}"
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
