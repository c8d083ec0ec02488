"""What is known about a published file, and whether bytes are it.

What was downloaded when: `NAME.json` beside the file.

It outlives the file: the SHA-256 that was seen first is what later downloads of the URL must have,
unless a published length or SHA-256 says that it was another file.

The bytes of a file that have arrived so far, kept for the next time.

NAME.partial        the bytes
NAME.partial.json   url, validator (ETag or Last-Modified) and num_bytes of the whole file

One HTTP request for a file or for the rest of it, and what its failures mean.

`RefusedError` is final; after an `InterruptionError` the next request may go better. What the
network does wrong never leaves this module as an OSError, so that an OSError elsewhere is one of
the disk.

Source: RFC 9110, sections 13.1.5 (If-Range), 14.4 (Content-Range) and 15.5.17 (status 416).

Asks for a file until it is whole: over dropped connections, stalls and servers that are busy.

Every failed request is followed by a pause, which doubles as long as no new byte comes. A file that
changed at the server is started anew.

The files that have been downloaded, each with its record, fetched once whoever asks.

    NAME        the file, whole and verified
    NAME.json   its record, see `record.py`
    NAME.lock   held while it is downloaded; waits as long as the process that holds it lives

A file without a record was put there by hand; it is never removed or replaced.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import filelock

from distill.errors import DistillError
from distill.files import atomic_write
from distill.parsing import checked, parse_json
from distill.terminal import progress_bar

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Record:
    """A file that was whole.

    Attributes:
        url: Where it came from.
        num_bytes: Its length; `bytes` in the file.
        sha256: All hexadecimal digits.
        fetched: When, ISO 8601 in UTC.
    """

    url: str
    num_bytes: int
    sha256: str
    fetched: str

    def is_outdated(self, source: Source) -> bool:
        """Return whether the source says by now that this is another file."""
        algorithm, digits = split_checksum(source)
        return source.num_bytes not in (None, self.num_bytes) or (
            algorithm == "sha256" and not self.sha256.startswith(digits)
        )


def record_path(path: Path) -> Path:
    """Return where the record of a file lies."""
    return path.with_name(path.name + ".json")


def read_record(path: Path) -> Record | None:
    """Read the record of the file `path`; None when there is none.

    Raises:
        DownloadError: When it is damaged.
    """
    file = record_path(path)
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        return Record(
            str(content["url"]),
            int(content["bytes"]),
            str(content["sha256"]),
            str(content["fetched"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DownloadError(
            f"{file.absolute()}, the record of a download, is damaged", "remove it"
        ) from error


def write_record(path: Path, source: Source, content: Content) -> None:
    """Write the record of the file `path`, now."""
    record = {
        "url": source.url,
        "bytes": content.num_bytes,
        "sha256": content.sha256,
        "fetched": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    atomic_write(record_path(path), (json.dumps(record, indent=2) + "\n").encode())


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
        atomic_write(self._record, (json.dumps(record, indent=2) + "\n").encode())

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


TIMEOUT = 30.0  # seconds without a byte
_WEB_PAGES = ("text/html", "application/xhtml+xml")


class RefusedError(Exception):
    """The file cannot be had from there."""


class InterruptionError(Exception):
    """The request failed in a way that may pass."""


class UnreachableError(InterruptionError):
    """There was no connection to the server."""


class MismatchError(InterruptionError):
    """What the server sends does not continue what has arrived."""


class BeyondEndError(MismatchError):
    """The file ends before the byte asked for; `total` is its length, where the server says it."""

    def __init__(self, total: int | None) -> None:
        super().__init__("the server has no bytes beyond those that have arrived")
        self.total = total


@dataclass(frozen=True)
class Answer:
    """A server's answer, its body still to be read.

    Attributes:
        start: Where in the file the body starts: as asked for, or 0.
        total: Length of the whole file, where the server says it.
        validator: Strong ETag, else Last-Modified, else None: changes when the file does.
    """

    start: int
    total: int | None
    validator: str | None
    _response: HTTPResponse

    def read(self) -> bytes:
        """Return the next bytes, at most `CHUNK_BYTES`; none at the end or when the server hung up.

        Raises:
            InterruptionError: The connection broke.
        """
        try:
            # read1, because read would lose what it has when the connection breaks.
            return self._response.read1(CHUNK_BYTES)
        except (OSError, HTTPException) as error:
            raise InterruptionError(f"the connection broke ({_reason(error)})") from error


@contextmanager
def answer_to(url: str, *, start: int = 0, validator: str | None = None) -> Iterator[Answer]:
    """Ask for a file from byte `start` on, in case it is still the one of `validator`.

    Raises:
        RefusedError: By the server, or the URL or the answer is of no use.
        InterruptionError: See its subclasses.
    """
    headers = {"User-Agent": "distill-vision"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    with _opened(url, headers) as response:
        yield _understood(response, start)


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to http and https only; the library's would follow one to ftp."""

    def redirect_request(  # noqa: PLR0917 (the library's signature)
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        if not newurl.lower().startswith(("http://", "https://")):
            raise HTTPError(newurl, code, f"a redirect to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opened(url: str, headers: dict[str, str]) -> HTTPResponse:
    try:
        return build_opener(_Redirects).open(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        with error:
            raise _status_failure(error) from error
    except URLError as error:
        raise UnreachableError(f"no connection ({_reason(error.reason)})") from error
    except (InvalidURL, ValueError) as error:
        raise RefusedError(f"the URL cannot be used ({_reason(error)})") from error
    except (OSError, HTTPException) as error:
        raise InterruptionError(f"the connection broke ({_reason(error)})") from error


def _status_failure(error: HTTPError) -> Exception:
    if error.code == 416:
        total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        return BeyondEndError(int(total[1]) if total else None)
    reason = f"HTTP status {error.code} ({' '.join(str(error.reason).split())})"
    return (
        InterruptionError(reason)
        if error.code >= 500 or error.code == 429
        else RefusedError(reason)
    )


def _understood(response: HTTPResponse, start: int) -> Answer:
    kind = response.headers.get_content_type()
    if kind in _WEB_PAGES:
        raise RefusedError(f"a web page ({kind}) came instead of the file, as from a login page")
    etag, modified = response.headers["ETag"], response.headers["Last-Modified"]
    validator = etag if etag and not etag.startswith("W/") else modified
    if response.status == 200:
        return Answer(0, response.length, validator, response)
    if response.status != 206:
        raise RefusedError(f"HTTP status {response.status} ({response.reason})")
    sent = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", sent)
    if not match or int(match[1]) != start:
        raise MismatchError(
            f"the server sent {sent or 'an unnamed range'!r}, not from byte {start} on"
        )
    # What was asked for has no end, so that without a total the last byte sent is the file's.
    total = int(match[2]) + 1 if match[3] == "*" else int(match[3])
    return Answer(start, total, validator, response)


def _reason(error: str | BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


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
            logger.info(f"{source.url}: {reason}; asking again in {seconds} s")
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
            logger.info(f"{path} is damaged or outdated ({damage}); downloading it again")
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
            logger.info(f"downloading {source.url} to {path}")
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
        logger.info(f"waiting for another process that downloads {path.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
