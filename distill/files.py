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
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` by `written_whole`."""
    with written_whole(path) as file:
        file.write(content)


@contextmanager
def replaced_whole(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` for others to write to; rename it when all went well.

    For writers that want a name rather than an open file; otherwise as `written_whole`.
    """
    temporary = path.with_name(path.name + ".partial")
    yield temporary
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
