"""The bytes of a file that have arrived so far, kept for the next time.

NAME.partial        the bytes
NAME.partial.json   url, validator (ETag or Last-Modified) and num_bytes of the whole file
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from distill.download.source import Content, Source
from distill.files import write_whole
from distill.parsing import checked, parse_json


class Partial:
    """An open `NAME.partial`; what an earlier process left there is continued or dropped.

    It is of use when it comes from the same URL, and when what comes later can be told to belong to
    it: by a validator, or in the end by a checksum.

    Args:
        path: Where the whole file will lie.
        source: What it is.

    Attributes:
        content: The bytes so far.
        validator: See `request.Answer`.
        total: Length of the whole file, where known.
    """

    def __init__(self, path: Path, source: Source) -> None:
        self.path = path.with_name(path.name + ".partial")
        self._record = path.with_name(path.name + ".partial.json")
        self._target = path
        self._source = source
        self._file = self.path.open("ab", buffering=0)
        self.content = Content(source)
        self.validator: str | None = None
        self.total: int | None = None
        self._continue()

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self.num_bytes:
            self.remove()

    @property
    def num_bytes(self) -> int:
        """Bytes that have arrived."""
        return self.content.num_bytes

    @property
    def is_whole(self) -> bool:
        """Whether all bytes have arrived."""
        return self.total is not None and self.num_bytes >= self.total

    def clear(self) -> None:
        """Drop all bytes and what the server said about them."""
        self._file.truncate(0)
        self._record.unlink(missing_ok=True)
        self.content = Content(self._source)
        self.validator = self.total = None

    def begin(self, *, validator: str | None, total: int | None) -> None:
        """Start anew with what the server says about the file."""
        self.clear()  # first: the record must never describe other bytes
        self.validator, self.total = validator, total
        record = {"url": self._source.url, "validator": validator, "num_bytes": total}
        write_whole(self._record, (json.dumps(record, indent=2) + "\n").encode())

    def append(self, chunk: bytes) -> None:
        """Write the next bytes."""
        rest = memoryview(chunk)
        while rest:  # a disk that is nearly full takes a part
            rest = rest[self._file.write(rest) :]
        self.content.add(chunk)

    def publish(self) -> None:
        """Flush the bytes to the disk and give the file its name."""
        os.fsync(self._file.fileno())
        self._file.close()
        self.path.replace(self._target)
        self._record.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the bytes."""
        self._file.close()
        self.path.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)

    def _continue(self) -> None:
        record = self._read_record()
        self.validator, self.total = record.get("validator"), record.get("num_bytes")
        num_bytes = self.path.stat().st_size
        if (
            record.get("url") == self._source.url
            and (self.validator or self._source.checksum)
            and (self.total is None or num_bytes <= self.total)
            and (self.total is None or self._source.num_bytes in (None, self.total))
        ):
            self.content.add_file(self.path)
        else:
            self.clear()

    def _read_record(self) -> dict[str, Any]:
        try:
            record = checked(parse_json(self._record.read_text(encoding="utf-8")), dict[str, Any])
            checked(record.get("num_bytes"), int | None)
        except (FileNotFoundError, ValueError):
            return {}
        return record
