"""The files that have been downloaded, each with its record, fetched once whoever asks.

    NAME        the file, whole and verified
    NAME.json   its record, see `record.py`
    NAME.lock   held while it is downloaded; waits as long as the process that holds it lives

A file without a record was put there by hand; it is never removed or replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from distill.download.partial import Partial
from distill.download.record import read_record, record_path, write_record
from distill.download.source import Content, DownloadError, Source, file_name
from distill.download.transfer import transfer
from distill.errors import DistillError
from distill.terminal import say

_ELSEWHERE = "set DISTILL_CACHE=FOLDER to a folder on another disk"


def fetch(source: Source, folder: Path, *, instead: str) -> Path:
    """Return the path of a published file under `folder`, downloading it unless it is there.

    A file that is there is read once to see that it is what was downloaded; one that is damaged, or
    not what the source describes by now, is downloaded again. What an interrupted download left is
    continued, also by another process.

    Args:
        source: The file.
        folder: Where it lies or will lie, under its name in the URL; made when it is missing.
        instead: What can be done without this download; ends every error.

    Returns:
        The path of the whole, verified file.

    Raises:
        DistillError: There is no network, the server refuses, what came is not the file, it is not
            what came the last time, or the disk is full or read-only.
    """
    try:
        path = folder / file_name(source)
        _fetch(source, path)
    except DownloadError as failure:
        raise DistillError(failure.sentence(source, instead)) from failure
    except OSError as error:  # of the disk: see `request.py`
        failed = _disk_failure(source, Path(error.filename or folder), error, source.num_bytes)
        raise DistillError(failed.sentence(source, instead)) from error
    return path


def _fetch(source: Source, path: Path) -> None:
    # Without the lock, so that a folder that can only be read serves what it holds.
    if path.exists() and not _damage(source, path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        if not path.exists():  # else another process has fetched it meanwhile
            _download(source, path)
        elif damage := _damage(source, path):
            say(f"{path} is damaged or outdated ({damage}); downloading it again")
            try:
                _download(source, path)
            except DownloadError as failure:
                what = f"{path.absolute()} is damaged or outdated ({damage}), and {failure.what}"
                raise DownloadError(what, failure.remedy) from failure


def _damage(source: Source, path: Path) -> str:
    """Say in words what happened to a downloaded file; empty when nothing did.

    Raises:
        DownloadError: When it is not a file to be replaced: put there by hand, or from elsewhere.
    """
    if not path.is_file():
        raise DownloadError(f"{path.absolute()} is not a file", "move it away")
    record = read_record(path)
    content = Content.of_file(path, source)
    mismatch = content.mismatch()
    if record is None:
        _accept(source, path, content)
        return ""
    if record.url != source.url and (mismatch or not source.checksum):
        raise DownloadError(
            f"{path.absolute()} comes from {record.url}, not from {source.url}",
            f"move it and {record_path(path).name} away",
        )
    if content.num_bytes != record.num_bytes:
        return f"it has {content.num_bytes:,} bytes, had {record.num_bytes:,}"
    if content.sha256 != record.sha256:
        return f"its sha256 is {content.sha256}, was {record.sha256}"
    return mismatch


def _accept(source: Source, path: Path, content: Content) -> None:
    """Record a file that a person has put there."""
    if mismatch := content.mismatch():
        raise DownloadError(
            f"{path.absolute()} is not the file of {source.url}: {mismatch}",
            "move it away to have it downloaded",
        )
    # Nothing is lost where that cannot be written, or somebody holds the lock, as this process does
    # when the file appeared while it waited: the next call does the same.
    with suppress(OSError), _lock(path).acquire(timeout=0):
        write_record(path, source, content)


def _download(source: Source, path: Path) -> None:
    by_hand = f"put the file at {path.absolute()} by hand"
    with Partial(path, source) as partial:
        try:
            say(f"downloading {source.url} to {path}")
            transfer(source, partial, by_hand=by_hand)
            _verify(source, path, partial, by_hand=by_hand)
            # The record first, so that a file without one is always a person's.
            write_record(path, source, partial.content)
            partial.publish()
        except OSError as error:
            total = partial.total or source.num_bytes
            failed = _disk_failure(source, partial.path, error, total, partial.num_bytes)
            raise failed from error


def _verify(source: Source, path: Path, partial: Partial, *, by_hand: str) -> None:
    content = partial.content
    if mismatch := content.mismatch(partial.total):
        partial.remove()
        raise DownloadError(
            f"what came from {source.url} is not the file: {mismatch}; it was removed", by_hand
        )
    record = read_record(path)
    is_pinned = record and record.url == source.url and not record.is_outdated(source)
    if record and is_pinned and record.sha256 != content.sha256:
        partial.remove()
        raise DownloadError(
            f"{source.url} is not what it was: its sha256 is {content.sha256}, and was "
            f"{record.sha256} on {record.fetched}; it was removed",
            f"remove {record_path(path).absolute()} to accept the new file",
        )


def _disk_failure(
    source: Source, path: Path, error: OSError, total: int | None, kept: int = 0
) -> DownloadError:
    needs = f"; {total:,} bytes must fit there" if total else ""
    has = f"; the {kept:,} that came are kept" if kept else ""
    return DownloadError(
        f"{source.url} cannot be kept at {path.absolute()}: {error.strerror or error}{needs}{has}",
        f"make room or permit access there, or {_ELSEWHERE}",
    )


def _lock(path: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(path.with_name(path.name + ".lock"))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = _lock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"waiting for another process that downloads {path.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
