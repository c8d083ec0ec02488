"""Downloads from a local HTTP server that can do wrong what servers and networks do wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.models import download
from distill.models.download import Source, fetch

PATIENCE = 30.0  # seconds until a held answer goes on by itself; no test waits for it
CODE = (
    "import sys; from pathlib import Path\n"
    "from distill.models.download import Source, fetch\n"
    "print(fetch(Source(sys.argv[1]), Path(sys.argv[2]), instead='x'))\n"
)


class FileServer:
    """Serves `content`; each request is answered as the next of `replies` says, then as usual.

    A reply may have: status; drop_after and stall_after, bytes of the body after which it hangs up
    or goes silent; hold, to wait for `release` before the body; whole, to ignore ranges;
    any_version, to ignore If-Range; unstated, to send no length; headers, instead of the usual.
    """

    def __init__(self) -> None:
        self.content = bytes(i * i % 251 for i in range(10_000))
        self.etag: str | None = '"first"'
        self.modified: str | None = None
        self.replies: list[dict] = []
        self.always: dict = {}
        self.requests: list = []
        self.asked, self.release = threading.Event(), threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/models/weights.pth"

    def will(self, **reply) -> None:
        self.replies.append(reply)

    @property
    def ranges(self) -> list[str | None]:
        return [request["Range"] for request in self.requests]

    def close(self) -> None:
        self.release.set()
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.requests.append(self.headers)
                server.asked.set()
                self.close_connection = True
                reply = server.replies.pop(0) if server.replies else server.always
                start, size = 0, len(server.content)
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                versions = (None, server.etag, server.modified)
                is_same = self.headers.get("If-Range") in versions or reply.get("any_version")
                if asked and is_same and not reply.get("whole"):
                    start = int(asked[1])
                body = server.content[start:]
                status = reply.get("status", 416 if start >= size else 206 if start else 200)
                if status not in (200, 206):
                    body = b""
                headers = {"ETag": server.etag, "Last-Modified": server.modified}
                headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}" if start else None
                headers["Content-Length"] = None if reply.get("unstated") else str(len(body))
                self.send_response(status)
                for name, value in (headers | reply.get("headers", {})).items():
                    if value is not None:
                        self.send_header(name, value)
                self.end_headers()
                if reply.get("hold"):
                    server.release.wait(PATIENCE)
                end = reply.get("drop_after", reply.get("stall_after", len(body)))
                self.wfile.write(body[:end])
                if "stall_after" in reply:
                    server.release.wait(PATIENCE)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server on this machine, reached without a proxy and asked again without a pause."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "RETRIES", download.RETRIES.new(backoff_factor=0))
    file_server = FileServer()
    yield file_server
    file_server.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "cache" / "weights"


def fetched(server: FileServer, folder: Path, **known) -> bytes:
    path = fetch(Source(server.url, **known), folder, instead="pass FILE")
    assert path == folder / "weights.pth"
    assert not list(folder.glob("*.partial*"))
    return path.read_bytes()


def failure(source: Source, folder: Path) -> str:
    with pytest.raises(DistillError) as caught:
        fetch(source, folder, instead="pass FILE")
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(", or pass FILE")
    return message


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def interrupted(server, folder) -> Path:
    """The folder with the first 4,000 bytes; the requests so far are forgotten."""
    server.will(drop_after=4_000)
    server.will(status=404)
    message = failure(Source(server.url), folder)
    assert "HTTP status 404 (Not Found) (the 4,000 bytes received are kept)" in message
    assert f"; put the file at {folder / 'weights.pth'} by hand, or" in message
    assert not (folder / "weights.pth").exists()
    server.requests.clear()
    return folder


def test_a_file_is_fetched_once_and_recorded(server, folder):
    known = {"num_bytes": 10_000, "checksum": "sha256:" + sha256(server.content)[:8]}
    assert fetched(server, folder, **known) == server.content
    record = json.loads((folder / "weights.pth.json").read_text())
    del record["fetched"]
    assert record == {"url": server.url, "bytes": 10_000, "sha256": sha256(server.content)}
    assert fetched(server, folder, **known) == server.content
    assert server.ranges == [None]


def test_a_dropped_connection_is_continued(server, folder):
    server.will(drop_after=4_096)
    server.will(drop_after=2_000)
    assert fetched(server, folder) == server.content
    assert server.ranges == [None, "bytes=4096-", "bytes=6096-"]
    assert [head["If-Range"] for head in server.requests[1:]] == ['"first"', '"first"']


def test_a_silent_server_is_asked_again(server, folder, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    server.will(stall_after=4_000)
    assert fetched(server, folder) == server.content
    assert server.ranges == [None, "bytes=4000-"]


def test_a_busy_server_is_asked_again_and_given_up_in_the_end(server, folder):
    server.will(status=503, headers={"Retry-After": "0"})
    server.will(status=429)
    assert fetched(server, folder) == server.content
    (folder / "weights.pth").unlink()
    server.always = {"status": 503}
    message = failure(Source(server.url, caveat="the host is slow"), folder)
    assert "too many 503 error responses; known about this link: the host is slow" in message


def test_redirects_are_followed_with_the_range_and_to_the_web_alone(server, interrupted):
    server.will(status=302, headers={"Location": "/moved/weights.pth"})
    assert fetched(server, interrupted) == server.content
    assert server.ranges == ["bytes=4000-", "bytes=4000-"]
    (interrupted / "weights.pth").unlink()
    server.will(status=302, headers={"Location": "file:///etc/passwd"})
    assert "cannot be downloaded: " in failure(Source(server.url), interrupted)


def test_no_network_is_one_sentence(server, folder):
    server.close()
    message = failure(Source(server.url), folder)
    assert f"{server.url} cannot be downloaded: [Errno 111] Connection refused; put" in message


def test_an_earlier_process_is_continued(server, interrupted):
    assert fetched(server, interrupted) == server.content
    assert server.ranges == ["bytes=4000-"]
    assert server.requests[0]["If-Range"] == '"first"'


def test_a_version_that_changed_is_never_joined_to_the_old(server, interrupted):
    server.content, server.etag = server.content[::-1], '"second"'
    assert fetched(server, interrupted) == server.content


@pytest.mark.parametrize(
    "wrong",
    [
        {"ETag": '"second"'},
        {"Content-Range": "bytes 4000-9999/20000"},
        {"Content-Range": "bytes 3999-9998/10000"},
        {"Content-Range": None},
    ],
)
def test_a_rest_that_does_not_fit_is_not_appended(server, interrupted, wrong):
    server.will(any_version=True, headers=wrong)
    assert fetched(server, interrupted) == server.content
    assert server.ranges == ["bytes=4000-", None]


def test_what_cannot_be_told_to_belong_to_the_rest_is_dropped(server, interrupted):
    state = interrupted / "weights.pth.partial.json"
    for text in ("{", json.dumps({"url": server.url, "validator": None, "num_bytes": 10_000})):
        state.write_text(text)
        server.will(status=404)
        failure(Source(server.url), interrupted)
    assert server.ranges == [None, None]


def test_a_checksum_does_without_a_validator(server, interrupted):
    state = interrupted / "weights.pth.partial.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "validator": None}))
    checksum = "sha256:" + sha256(server.content)
    assert fetched(server, interrupted, checksum=checksum) == server.content
    assert server.ranges == ["bytes=4000-"]


def test_more_bytes_than_there_are_start_anew(server, interrupted):
    (interrupted / "weights.pth.partial").write_bytes(bytes(10_001))
    assert "it has 10,001 bytes, expected 10,000" in failure(Source(server.url), interrupted)
    assert fetched(server, interrupted) == server.content


def test_last_modified_serves_where_there_is_no_strong_etag(server, folder):
    server.etag, server.modified = 'W/"weak"', "Mon, 01 Jan 2024 00:00:00 GMT"
    server.will(drop_after=4_000)
    assert fetched(server, folder) == server.content
    assert server.requests[1]["If-Range"] == server.modified


def test_a_server_without_ranges_starts_from_zero_and_is_given_up(server, folder):
    server.will(drop_after=4_000)
    server.will(drop_after=6_000, whole=True)
    server.will(whole=True)
    assert fetched(server, folder) == server.content
    (folder / "weights.pth").unlink()
    server.always = {"drop_after": 4_000, "whole": True}
    assert ", 5 times without a new byte" in failure(Source(server.url), folder)


def test_a_file_of_unstated_length_ends_where_it_ends_or_where_it_must(server, folder):
    server.always = {"unstated": True}
    assert fetched(server, folder) == server.content
    (folder / "weights.pth").unlink()
    server.will(unstated=True, drop_after=4_000)
    assert fetched(server, folder, num_bytes=10_000) == server.content
    assert server.ranges[-1] == "bytes=4000-"


def test_what_came_is_verified(server, folder, monkeypatch):
    message = failure(Source(server.url, num_bytes=9_000), folder)
    assert "cannot be downloaded: it has 10,000 bytes, not 9,000" in message
    for algorithm in ("sha256", "md5"):
        message = failure(Source(server.url, checksum=f"{algorithm}:01234567"), folder)
        digest = hashlib.new(algorithm, server.content).hexdigest()
        assert f"its {algorithm} is {digest}, not 01234567; it was removed" in message
    server.will(headers={"Content-Type": "text/html; charset=utf-8"})
    assert "the server sent a web page" in failure(Source(server.url), folder)
    assert {path.name for path in folder.iterdir()} <= {
        *("weights.pth.lock", "weights.pth.partial", "weights.pth.partial.json")
    }


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c[:5_000] + b"x" + c[5_001:]])
def test_a_damaged_file_is_fetched_again(server, folder, change, caplog):
    caplog.set_level("INFO", "distill")
    assert fetched(server, folder) == server.content
    (folder / "weights.pth").write_bytes(change(server.content))
    assert fetched(server, folder) == server.content
    assert "(the file there is damaged: its sha256 is not what it was)" in caplog.text


def test_a_file_put_there_by_hand_is_verified_and_never_replaced(server, folder):
    folder.mkdir(parents=True)
    path = folder / "weights.pth"
    path.write_bytes(b"by hand")
    assert fetched(server, folder, checksum="sha256:" + sha256(b"by hand")[:10]) == b"by hand"
    message = failure(Source(server.url, num_bytes=8), folder)
    assert f"{path} is not the file of {server.url}: it has 7 bytes, expected 8; move" in message
    assert path.read_bytes() == b"by hand"
    assert server.requests == []


def test_too_little_room_is_said_before_anything_is_written(server, interrupted, monkeypatch):
    def room(free: int) -> Callable:
        usage = download.shutil.disk_usage("/")._replace(free=free)
        return lambda _: usage

    with monkeypatch.context() as patched:
        patched.setattr(download.shutil, "disk_usage", room(5_999))
        message = failure(Source(server.url), interrupted)
        assert f"needs 6,000 more bytes in {interrupted}, which has 5,999 free;" in message
        assert "set DISTILL_CACHE=FOLDER to a folder on another disk, or pass FILE" in message
    monkeypatch.setattr(download.shutil, "disk_usage", room(6_000))
    assert fetched(server, interrupted) == server.content


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_fails_is_one_sentence_and_publishes_nothing(server, folder, monkeypatch, kind):
    def fail(*_, **__):
        raise OSError(kind, os.strerror(kind))

    for owner, name in ((download.os, "fsync"), (Path, "mkdir")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, fail)
            message = failure(Source(server.url), folder / name)
        assert f"{os.strerror(kind)}; free space or permit access there, or set DIS" in message
        assert not (folder / name / "weights.pth").exists()
    assert fetched(server, folder) == server.content


def test_a_folder_that_cannot_be_written_serves_what_it_holds(server, folder, monkeypatch):
    fetched(server, folder)

    def fail(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(download.filelock, "FileLock", fail)
    assert fetched(server, folder) == server.content


def start(url: str, folder: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", CODE, url, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_the_second_process_waits_and_finds_the_file(server, folder, monkeypatch):
    server.always = {"hold": True}
    messages = []

    def info(message: str) -> None:
        messages.append(message)
        server.release.set()  # the other process waits for that with its download

    with start(server.url, folder) as other:
        assert server.asked.wait(PATIENCE)
        monkeypatch.setattr(download.logger, "info", info)
        assert fetched(server, folder) == server.content
        out, _ = other.communicate(timeout=PATIENCE)
    assert messages == ["waiting for another process to download weights.pth"]
    assert out.splitlines()[-1] == str(folder / "weights.pth")
    assert len(server.requests) == 1


def test_a_process_that_was_killed_is_continued(server, folder):
    server.will(stall_after=4_000)
    with start(server.url, folder) as other:
        assert server.asked.wait(PATIENCE)
        partial = folder / "weights.pth.partial"
        while not partial.exists() or partial.stat().st_size < 4_000:
            assert other.poll() is None
        other.kill()
    assert fetched(server, folder) == server.content
    assert server.ranges == [None, "bytes=4000-"]
