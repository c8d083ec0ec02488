"""Downloads a published file once, resumes interrupted downloads and verifies the file.

    NAME                the complete, verified file
    NAME.json           its origin: url, bytes, sha256, fetched (UTC)
    NAME.partial        the bytes received so far
    NAME.partial.json   url, validator (ETag or Last-Modified) and num_bytes of the complete file
    NAME.lock           held by the downloading process

urllib3 makes the requests: it follows redirects, retries if there is no connection or the server is
busy (429 and 5xx, after `Retry-After`), and detects a body that ends early. The rest of a file is
requested with `Range` and `If-Range`, so that parts of two versions are never joined (RFC 9110,
sections 13.1.5, 14.4 and 15.5.17). A file without NAME.json was put there by hand: it is verified
and never replaced.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import filelock
import urllib3
from urllib3.exceptions import HTTPError, LocationValueError, MaxRetryError

from distill.errors import DistillError
from distill.files import atomic_write
from distill.parsing import parse_json
from distill.terminal import progress_bar

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
TIMEOUT = 30.0  # seconds without a byte
NUM_ATTEMPTS = 5  # consecutive attempts without a new byte
RETRIES = urllib3.Retry(
    *(None, 4, 4, 10, 4),  # total, connect, read, redirect, status
    status_forcelist=(429, 500, 502, 503, 504),
    backoff_factor=0.5,  # 7 seconds for 4 retries
    retry_after_max=60,
)
_ELSEWHERE = "set DISTILL_CACHE=FOLDER to a folder on another disk"


@dataclass(frozen=True)
class Source:
    """The URL of a published file, and its length and checksum if known."""

    url: str  # http or https; its last part is the file name
    num_bytes: int | None = None
    checksum: str | None = None  # `sha256:` or `md5:` with at least the first 8 hexadecimal digits
    caveat: str = ""  # a known problem with the link, repeated in every error message

    def __post_init__(self) -> None:
        assert re.fullmatch(r"https?://[^/]+/.*[^/]", self.url), self.url
        assert re.fullmatch(r"(sha256|md5):[0-9a-f]{8,64}", self.checksum or "md5:00000000")

    @property
    def name(self) -> str:
        """File name."""
        return Path(unquote(urlsplit(self.url).path)).name


def fetch(source: Source, folder: Path, *, instead: str) -> Path:
    """Return the path of a published file in `folder`, downloading it if necessary.

    An existing file is verified, and downloaded again if it is damaged or differs from the source.
    An interrupted download is resumed, also by another process.

    Args:
        source: The file.
        folder: Its folder, created if missing; the file has its name in the URL.
        instead: What the user can do without the download, the end of every error message.

    Raises:
        DistillError: There is no network, the server refuses, the download is not the file, or the
            disk is full or cannot be written.
    """
    path = folder / source.name
    try:
        if _problem(source, path):  # without the lock: the folder may be read-only
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(path):
                if problem := _problem(source, path):  # else another process downloaded it
                    logger.info(f"downloading {source.url} to {path} ({problem})")
                    _Download(source, path).run()
    except _DownloadError as failure:
        caveat = f"; known about this link: {source.caveat}" if source.caveat else ""
        raise DistillError(f"{failure}{caveat}; {failure.remedy}, or {instead}") from failure
    except OSError as error:  # of the disk; network errors are HTTPError
        raise DistillError(
            f"{source.url} cannot be saved to {error.filename or path}: {error.strerror or error}; "
            f"free space or permit access there, or {_ELSEWHERE}, or {instead}"
        ) from error
    return path


def mismatch(path: Path, source: Source) -> str:
    """Describe how a file differs from its source; empty if it does not."""
    size = path.stat().st_size
    if source.num_bytes not in (None, size):
        return f"it has {size:,} bytes, expected {source.num_bytes:,}"
    if source.checksum is None:
        return ""
    algorithm, _, expected = source.checksum.partition(":")
    digest = _digest(path, algorithm)
    return "" if digest.startswith(expected) else f"its {algorithm} is {digest}, not {expected}"


class _DownloadError(Exception):
    """Why a file cannot be downloaded, and the remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


class _ChangedError(HTTPError):
    """The response does not continue the partial file."""


class _Download:
    """One download of `total` bytes, if known, of the version named by `validator`."""

    def __init__(self, source: Source, path: Path) -> None:
        self.source, self.path = source, path
        self.partial, self.state_path = _beside(path, ".partial"), _beside(path, ".partial.json")
        self.validator: str | None = None
        self.total = source.num_bytes

    @property
    def num_bytes(self) -> int:
        """Bytes received so far."""
        return self.partial.stat().st_size

    def run(self) -> None:
        """Download the file, verify it and rename it."""
        self._continue()
        self._transfer()
        difference = mismatch(self.partial, self.source)
        if self.total not in (None, self.num_bytes):
            difference = f"it has {self.num_bytes:,} bytes, expected {self.total:,}"
        if difference:
            self.partial.unlink()
            self.state_path.unlink(missing_ok=True)
            raise self._failure(f"the download is not the file: {difference}; it was removed")
        record = {
            "url": self.source.url,
            "bytes": self.num_bytes,
            "sha256": _digest(self.partial, "sha256"),
            "fetched": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        with self.partial.open("rb") as file:
            os.fsync(file.fileno())
        # The record first, so that a file without one was certainly put there by hand.
        _write_object(_beside(self.path, ".json"), record)
        self.partial.replace(self.path)
        self.state_path.unlink(missing_ok=True)

    def _continue(self) -> None:
        """Resume an earlier download if the rest can be verified to belong to it."""
        self.partial.touch()
        state = _read_object(self.state_path)
        is_same = state.get("url") == self.source.url
        if is_same and (state.get("validator") or self.source.checksum):
            self.validator, self.total = state.get("validator"), state.get("num_bytes")
        else:
            self._restart(None, None)

    def _restart(self, validator: str | None, total: int | None) -> None:
        """Discard all bytes and expect this version."""
        self.partial.write_bytes(b"")
        self.validator, self.total = validator, total or self.source.num_bytes
        state = {"url": self.source.url, "validator": validator, "num_bytes": self.total}
        _write_object(self.state_path, state)

    def _transfer(self) -> None:
        furthest, num_failures = self.num_bytes, 0
        name = self.path.name
        with progress_bar(self.total, initial=furthest, description=name, unit="B") as bar:
            while self.total is None or self.num_bytes < self.total:
                try:
                    self._request(bar)
                    return
                except (MaxRetryError, LocationValueError) as error:  # the latter: a redirect
                    raise self._failure(_reason(error)) from error
                except HTTPError as error:
                    # A server that always restarts sends bytes, but no new ones.
                    num_failures = 0 if self.num_bytes > furthest else num_failures + 1
                    furthest = max(furthest, self.num_bytes)
                    if num_failures == NUM_ATTEMPTS:
                        often = f"{_reason(error)}, {NUM_ATTEMPTS} times without a new byte"
                        raise self._failure(often) from error
                    logger.info(f"{self.source.url}: {_reason(error)}; asking for the rest")

    def _request(self, bar: Any) -> None:
        """Make one request; return when the file is complete."""
        start = self.num_bytes
        headers = {"User-Agent": "distill-vision", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if self.validator:
                headers["If-Range"] = self.validator
        response = _client(self.source.url).request(
            "GET", self.source.url, headers=headers, preload_content=False
        )
        try:
            self._prepare(response, start)
            bar.total, bar.n = self.total, self.num_bytes
            bar.refresh()
            with self.partial.open("ab") as file:
                while chunk := response.read1(CHUNK_BYTES):
                    file.write(chunk)
                    file.flush()  # survives this process
                    bar.update(len(chunk))
                    if self.total is not None and file.tell() > self.total:
                        return  # too long, `run` refuses it
        finally:
            response.close()
        if self.total is not None and self.num_bytes < self.total:
            raise _ChangedError(f"the response ended after {self.num_bytes:,} bytes")

    def _prepare(self, response: urllib3.BaseHTTPResponse, start: int) -> None:
        """Check from the headers that the body is the file or the rest of it, and that it fits."""
        headers = response.headers
        if response.status not in (200, 206, 416):
            raise self._failure(f"HTTP status {response.status} ({response.reason})")
        if headers.get("Content-Type", "").lower().startswith("text/html"):
            raise self._failure("the server sent a web page, such as a login, instead of the file")
        etag, validator = headers.get("ETag"), headers.get("Last-Modified")
        if etag and not etag.startswith("W/"):
            validator = etag
        if response.status == 200:
            self._restart(validator, response.length_remaining)
        else:
            # The requested range is open: without a total, the last byte sent is the file's.
            sent = headers.get("Content-Range", "")
            match = re.fullmatch(rf"bytes {start}-(\d+)/(\d+|\*)", sent)
            total = match and (int(match[1]) + 1 if match[2] == "*" else int(match[2]))
            if not match or _differ(total, self.total) or _differ(validator, self.validator):
                self._restart(None, None)
                raise _ChangedError("the file has changed, or the server sent another part of it")
            self.total = total
        if _differ(self.total, self.source.num_bytes):
            raise self._failure(f"it has {self.total:,} bytes, not {self.source.num_bytes:,}")
        missing = (self.total or 0) - self.num_bytes
        free = shutil.disk_usage(self.partial.parent).free
        if missing > free:
            raise _DownloadError(
                f"{self.source.url} needs {missing:,} more bytes in {self.path.parent}, which has "
                f"{free:,} free",
                f"free space there or {_ELSEWHERE}",
            )

    def _failure(self, reason: str) -> _DownloadError:
        kept = self.partial.exists() and self.num_bytes
        return _DownloadError(
            f"{self.source.url} cannot be downloaded: {reason}"
            + (f" (the {kept:,} bytes received are kept)" if kept else ""),
            f"put the file at {self.path.absolute()} by hand",
        )


def _problem(source: Source, path: Path) -> str:
    """Describe why the file must be downloaded; empty if it is there and complete."""
    if not path.exists():
        return "it is not there yet"
    difference = mismatch(path, source)
    record = _read_object(_beside(path, ".json"))
    if not record and difference:
        raise _DownloadError(
            f"{path} is not the file of {source.url}: {difference}",
            "move it away to download the file",
        )
    if difference or not record:
        return difference
    if record.get("url") != source.url:
        return f"the file there is from {record.get('url')}"
    is_whole = _digest(path, "sha256") == record.get("sha256")
    return "" if is_whole else "the file there is damaged: its sha256 is not what it was"


def _client(url: str) -> urllib3.PoolManager:
    """Return a client that uses the proxy of the environment, if there is one."""
    parts = urlsplit(url)
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    if proxy:
        return urllib3.ProxyManager(proxy, retries=RETRIES, timeout=TIMEOUT)
    return urllib3.PoolManager(retries=RETRIES, timeout=TIMEOUT)


def _reason(error: HTTPError) -> str:
    """Return urllib3's message without the names of its objects."""
    cause = getattr(error, "reason", None) or error
    return str(cause.args[0] if cause.args else cause).rpartition(": ")[2]


def _differ(one: object, other: object) -> bool:
    return None not in (one, other) and one != other


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _write_object(path: Path, content: dict[str, Any]) -> None:
    atomic_write(path, (json.dumps(content, indent=2) + "\n").encode())


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object, empty if missing or damaged."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = filelock.FileLock(_beside(path, ".lock"))
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        logger.info(f"waiting for another process to download {path.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
