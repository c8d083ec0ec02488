"""A local HTTP server that can do wrong what servers and networks do wrong."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from distill.models import download as request
from distill.models import download as transfer

PATIENCE = 30.0  # seconds until a held answer goes on by itself; no test waits for it


@dataclass
class Reply:
    """What the server does with one request.

    Attributes:
        status: Other than 200: an error without a file.
        drop_after: Bytes of the body after which it hangs up.
        reset: Hang up with a reset instead of an orderly end.
        stall_after: Bytes of the body after which it goes silent until the test ends.
        hold: Wait for `release` before the body.
        ignore_range: Send the whole file whatever was asked for.
        ignore_if_range: Send the rest even of another file.
        most: Bytes of a range that it sends at a time.
        announce: A Content-Length that is not true.
        chunked: Send chunks without a Content-Length.
        endless: Send neither length nor chunks; the end of the connection is the end.
        headers: More headers, or others; None: not this one.
    """

    status: int = 200
    drop_after: int | None = None
    reset: bool = False
    stall_after: int | None = None
    hold: bool = False
    ignore_range: bool = False
    ignore_if_range: bool = False
    most: int | None = None
    announce: int | None = None
    chunked: bool = False
    endless: bool = False
    headers: dict[str, str | None] = field(default_factory=dict)


class FileServer:
    """Serves `content` under every path; requests are answered by `replies`, then by `always`."""

    def __init__(self) -> None:
        self.content = bytes(i * i % 251 for i in range(10_000))
        self.etag: str | None = '"first"'
        self.modified: str | None = None
        self.replies: list[Reply] = []
        self.always = Reply()
        self.requests: list[Message] = []
        self.paths: list[str] = []
        self.asked, self.release = threading.Event(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/models/weights.pth"

    def will(self, **options) -> None:
        """Append what it does with the next request."""
        self.replies.append(Reply(**options))

    @property
    def ranges(self) -> list[str | None]:
        """The Range headers that came."""
        return [request["Range"] for request in self.requests]

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.requests.append(self.headers)
            server.paths.append(self.path)
            server.asked.set()
            self.close_connection = True
            _answer(self, server, server.replies.pop(0) if server.replies else server.always)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _answer(handler: BaseHTTPRequestHandler, server: FileServer, reply: Reply) -> None:
    if reply.status != 200:
        _send_head(handler, reply, reply.status, {"Content-Length": "0"})
        return
    start = 0
    asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    condition = handler.headers.get("If-Range")
    holds = condition in (None, server.etag, server.modified) or reply.ignore_if_range
    if asked and holds and not reply.ignore_range:
        start = int(asked[1])
    size = len(server.content)
    if start >= size > 0:
        headers = {"Content-Range": f"bytes */{size}", "Content-Length": "0"}
        _send_head(handler, reply, 416, headers)
        return
    end = size if reply.most is None else min(start + reply.most, size)
    body = server.content[start:end]
    headers = {"Content-Type": "application/octet-stream", "ETag": server.etag}
    headers["Last-Modified"] = server.modified
    if start or (reply.most is not None):
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    if reply.chunked:
        headers["Transfer-Encoding"] = "chunked"
    elif not reply.endless:
        length = len(body) if reply.announce is None else reply.announce
        headers["Content-Length"] = str(length)
    _send_head(handler, reply, 206 if "Content-Range" in headers else 200, headers)
    _send_body(handler, server, reply, body)


def _send_head(handler, reply: Reply, status: int, headers: dict[str, str | None]) -> None:
    handler.send_response(status)
    for name, value in {**headers, "Connection": "close", **reply.headers}.items():
        if value is not None:
            handler.send_header(name, value)
    handler.end_headers()


def _send_body(handler, server: FileServer, reply: Reply, body: bytes) -> None:
    if reply.hold:
        server.release.wait(PATIENCE)
    stops = [n for n in (reply.drop_after, reply.stall_after) if n is not None]
    sent = body[: min(stops)] if stops else body
    if reply.chunked:
        for chunk in (sent[i : i + 4096] for i in range(0, len(sent), 4096)):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        if not stops:
            handler.wfile.write(b"0\r\n\r\n")
    else:
        handler.wfile.write(sent)
    if reply.stall_after is not None:
        server.release.wait(PATIENCE)
    if reply.reset:
        linger = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.rfile.close()
        handler.wfile.close()
        handler.connection.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server on this machine, reached without a proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    file_server = FileServer()
    yield file_server
    file_server.close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; none is made."""
    asked: list[float] = []
    monkeypatch.setattr(transfer, "pause", asked.append)
    return asked


@pytest.fixture
def brief_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a silent server up after a moment."""
    monkeypatch.setattr(request, "TIMEOUT", 0.2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "cache" / "weights"
