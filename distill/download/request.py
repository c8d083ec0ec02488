"""One HTTP request for a file or for the rest of it, and what its failures mean.

`RefusedError` is final; after an `InterruptionError` the next request may go better. What the
network does wrong never leaves this module as an OSError, so that an OSError elsewhere is one of
the disk.

Source: RFC 9110, sections 13.1.5 (If-Range), 14.4 (Content-Range) and 15.5.17 (status 416).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, InvalidURL
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from distill.download.source import CHUNK_BYTES

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
