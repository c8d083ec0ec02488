"""Writes files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path`; when all went well, flush it to the disk and rename it.

    A reader sees the old content or the new one; a failed write leaves the old.
    """
    with replaced_whole(path) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def replaced_whole(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` for a writer that wants one; otherwise as `written_whole`."""
    temporary = path.with_name(path.name + ".partial")
    temporary.touch()
    mode = temporary.stat().st_mode  # what new files get; some writers make them private
    try:
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)  # gigabytes, perhaps, on a disk that is full
        raise
    temporary.replace(path)


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` by `written_whole`."""
    with written_whole(path) as file:
        file.write(content)
