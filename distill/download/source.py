"""What is known about a published file, and whether bytes are it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHUNK_BYTES = 1 << 20
_NUM_DIGITS = {"sha256": 64, "md5": 32}
_FEWEST_DIGITS = 8  # what torchvision and others put into file names


@dataclass(frozen=True)
class Source:
    """Where a published file lies and what is known about it.

    Attributes:
        url: http or https; its last part names the file.
        num_bytes: Length, where known.
        checksum: `sha256:` or `md5:` with all hexadecimal digits or the first, at least 8, where
            known.
        caveat: What is known to be wrong with the link; repeated in every error about it.
    """

    url: str
    num_bytes: int | None = None
    checksum: str | None = None
    caveat: str = ""


class DownloadError(Exception):
    """Why a file cannot be had: `what` happened and what the `remedy` is.

    Raised inside this package; `fetch` makes a `DistillError` of it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def sentence(self, source: Source, instead: str) -> str:
        """Return it with what is known about the link and what can be done instead."""
        caveat = f"; known about this link: {source.caveat}" if source.caveat else ""
        return f"{self.what}{caveat}; {self.remedy}" + (f", or {instead}" if instead else "")


def file_name(source: Source) -> str:
    """Return the name that the file gets.

    Raises:
        DownloadError: The URL or the checksum is not of a kind that is supported.
    """
    try:
        parts = urlsplit(source.url)
    except ValueError as error:
        raise DownloadError(f"{source.url!r} is not a URL ({error})", "give one") from error
    if parts.scheme not in ("http", "https"):
        raise DownloadError(
            f"{source.url!r} is not downloaded", "give a URL that starts with https:// or http://"
        )
    name = unquote(parts.path.rsplit("/", 1)[-1])
    if name in ("", ".", "..") or re.search(r"[/\\\x00-\x1f]", name):
        raise DownloadError(
            f"{source.url!r} names no file", "give a URL that ends with a file name"
        )
    split_checksum(source)
    return name


class Content:
    """Length and hashes of bytes that come piece by piece.

    Args:
        source: What the bytes should be.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._algorithm, self._digits = split_checksum(source)
        self._hashes = {
            name: hashlib.new(name, usedforsecurity=False) for name in {"sha256", self._algorithm}
        }
        self.num_bytes = 0

    @classmethod
    def of_file(cls, path: Path, source: Source) -> Content:
        """Read a whole file."""
        content = cls(source)
        content.add_file(path)
        return content

    def add_file(self, path: Path) -> None:
        """Add what lies in a file."""
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                self.add(chunk)

    def add(self, chunk: bytes) -> None:
        """Add the next bytes."""
        self.num_bytes += len(chunk)
        for running in self._hashes.values():
            running.update(chunk)

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the bytes so far."""
        return self._hashes["sha256"].hexdigest()

    def mismatch(self, num_bytes: int | None = None) -> str:
        """Say in words how the bytes differ from the source; empty when they do not.

        Args:
            num_bytes: Another length that they should have, where known.
        """
        for expected in (self._source.num_bytes, num_bytes):
            if expected not in (None, self.num_bytes):
                return f"it has {self.num_bytes:,} bytes, expected {expected:,}"
        found = self._hashes[self._algorithm].hexdigest()
        if not found.startswith(self._digits):
            return f"its {self._algorithm} is {found}, expected {self._digits}" + (
                "..." if len(self._digits) < len(found) else ""
            )
        return ""


def split_checksum(source: Source) -> tuple[str, str]:
    """Return algorithm and first digits; without a checksum no digits, which every hash has.

    Raises:
        DownloadError: It is not of a kind that is supported, or too short.
    """
    if source.checksum is None:
        return "sha256", ""
    algorithm, _, digits = source.checksum.lower().partition(":")
    most = _NUM_DIGITS.get(algorithm, 0)
    if not _FEWEST_DIGITS <= len(digits) <= most or not re.fullmatch("[0-9a-f]+", digits):
        raise DownloadError(
            f"{source.checksum!r} is not a checksum of {source.url}",
            f"give sha256: or md5: with at least the first {_FEWEST_DIGITS} hexadecimal digits",
        )
    return algorithm, digits
