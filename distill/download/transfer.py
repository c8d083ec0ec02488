"""Asks for a file until it is whole: over dropped connections, stalls and servers that are busy.

Every failed request is followed by a pause, which doubles as long as no new byte comes. A file that
changed at the server is started anew.
"""

from __future__ import annotations

import shutil
import time
from typing import Any

from distill.download.partial import Partial
from distill.download.request import (
    Answer,
    BeyondEndError,
    InterruptionError,
    MismatchError,
    RefusedError,
    UnreachableError,
    answer_to,
)
from distill.download.source import DownloadError, Source
from distill.terminal import progress_bar, say

NUM_ATTEMPTS = 5  # in a row without a new byte


def transfer(source: Source, partial: Partial, *, by_hand: str) -> None:
    """Append to `partial` until it is whole.

    Args:
        source: The file.
        partial: What has arrived of it.
        by_hand: The remedy for failures of the network.

    Raises:
        DownloadError: The server refuses, there is no network, `NUM_ATTEMPTS` requests gave no new
            byte, or the disk has too little room.
        OSError: The bytes cannot be written.
    """
    before = furthest = partial.num_bytes
    num_failures = 0
    with _bar(source, partial) as bar:
        while not partial.is_whole:
            try:
                _attempt(source, partial, bar)
                continue
            except RefusedError as error:
                raise DownloadError(_cannot(source, partial, str(error)), by_hand) from error
            except InterruptionError as error:
                if isinstance(error, UnreachableError) and furthest == before:
                    raise DownloadError(_cannot(source, partial, str(error)), by_hand) from error
                reason, cause = str(error), error
            # A server that starts anew every time sends bytes, but none that is new.
            num_failures = 0 if partial.num_bytes > furthest else num_failures + 1
            furthest = max(furthest, partial.num_bytes)
            if num_failures == NUM_ATTEMPTS:
                often = f"{reason}, {NUM_ATTEMPTS} times in a row without a new byte"
                raise DownloadError(_cannot(source, partial, often), by_hand) from cause
            seconds = 2 ** max(num_failures - 1, 0)
            say(f"{source.url}: {reason}; asking again in {seconds} s")
            pause(seconds)


def pause(seconds: float) -> None:
    """Wait before the next request."""
    time.sleep(seconds)


def _attempt(source: Source, partial: Partial, bar: Any) -> None:
    """Make one request; it ends when the file is whole, else in an exception."""
    try:
        with answer_to(source.url, start=partial.num_bytes, validator=partial.validator) as answer:
            _prepare(source, partial, answer)
            bar.total, bar.n = partial.total, partial.num_bytes
            bar.refresh()
            _receive(partial, answer, bar)
    except BeyondEndError as error:
        if partial.total is None and error.total == partial.num_bytes:
            partial.total = error.total
            return
        partial.clear()
        raise
    except MismatchError:
        partial.clear()
        raise


def _prepare(source: Source, partial: Partial, answer: Answer) -> None:
    if answer.start == 0:
        if answer.total is not None and source.num_bytes not in (None, answer.total):
            raise RefusedError(f"it has {answer.total:,} bytes, expected {source.num_bytes:,}")
        partial.begin(validator=answer.validator, total=answer.total or source.num_bytes)
    elif _differ(answer.validator, partial.validator) or _differ(answer.total, partial.total):
        raise MismatchError("the file has changed at the server")
    elif partial.total is None:
        partial.total = answer.total
    if partial.total is None:
        return
    missing = partial.total - partial.num_bytes
    free = shutil.disk_usage(partial.path.parent).free
    if missing > free:
        raise DownloadError(
            f"{source.url} needs {missing:,} bytes more in {partial.path.parent.absolute()}, which "
            f"has room for {free:,}",
            "free space there or set DISTILL_CACHE=FOLDER to a folder on another disk",
        )


def _receive(partial: Partial, answer: Answer, bar: Any) -> None:
    while chunk := answer.read():
        partial.append(chunk)
        bar.update(len(chunk))
        if partial.total is not None and partial.num_bytes > partial.total:
            return  # too long, as the length will tell
    if partial.total is None:  # the end of the answer is the end of the file
        partial.total = partial.num_bytes
    elif not partial.is_whole:
        raise InterruptionError(
            f"the connection ended after {partial.num_bytes:,} of {partial.total:,} bytes"
        )


def _differ(one: object, other: object) -> bool:
    return None not in (one, other) and one != other


def _cannot(source: Source, partial: Partial, reason: str) -> str:
    kept = f" (the {partial.num_bytes:,} bytes that came are kept)" if partial.num_bytes else ""
    return f"{source.url} cannot be downloaded: {reason}{kept}"


def _bar(source: Source, partial: Partial) -> Any:
    return progress_bar(
        partial.total or source.num_bytes,
        initial=partial.num_bytes,
        description=partial.path.stem,
        unit="B",
    )
