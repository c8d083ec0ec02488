"""What a server or the way to it refuses, in one sentence and at once."""

import re
import socket

import pytest

from distill.errors import DistillError
from distill.models.download import Source, fetch

INSTEAD = "pass --teacher-weights FILE"


def refusal(source: Source, folder, caplog=None) -> str:
    """Return the sentence by which a download fails, which leaves nothing behind."""
    with pytest.raises(DistillError) as caught:
        fetch(source, folder, instead=INSTEAD)
    message = str(caught.value)
    assert "\n" not in message
    assert source.url in message
    assert message.endswith(f"put the file at {folder / 'weights.pth'} by hand, or {INSTEAD}")
    assert {path.name for path in folder.iterdir()} <= {"weights.pth.lock"}
    return message


@pytest.mark.parametrize(
    ("status", "name"), [(404, "Not Found"), (403, "Forbidden"), (401, "Unauthorized")]
)
def test_a_refusal_names_its_status_and_what_is_known(server, folder, pauses, status, name):
    server.will(status=status)
    message = refusal(Source(server.url, caveat="the link was dead in 2023"), folder)
    assert f"{server.url} cannot be downloaded: HTTP status {status} ({name})" in message
    assert "; known about this link: the link was dead in 2023; put" in message
    assert (len(server.requests), pauses) == (1, [])


@pytest.mark.parametrize("status", [204, 203])
def test_other_answers_are_no_file(server, folder, status):
    server.will(status=status)
    assert f"HTTP status {status}" in refusal(Source(server.url), folder)


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "Text/HTML", "application/xhtml+xml"])
def test_a_web_page_is_not_a_file(server, folder, kind):
    server.will(headers={"Content-Type": kind})
    assert "a web page (" in refusal(Source(server.url), folder)
    assert len(server.requests) == 1


def test_a_server_that_is_not_there(server, folder, pauses):
    server.close()
    assert "no connection (Connection refused)" in refusal(Source(server.url), folder)
    assert pauses == []


def test_a_name_that_does_not_resolve(folder, monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setenv("no_proxy", "*")
    message = refusal(Source("https://models.example/weights.pth"), folder)
    assert "no connection (Temporary failure in name resolution)" in message


def test_a_proxy_that_is_not_there(server, folder, monkeypatch):
    server.close()
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", server.url.rsplit("/models", 1)[0])
    message = refusal(Source("http://models.example/weights.pth"), folder)
    assert "no connection (Connection refused)" in message


def test_a_connection_that_is_not_accepted_ends_at_once(folder, brief_timeout, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        address = silent.getsockname()
        waiting = [socket.socket() for _ in range(4)]  # fill the queue, so that nobody else gets in
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        message = refusal(Source(f"http://127.0.0.1:{address[1]}/weights.pth"), folder)
        for one in waiting:
            one.close()
    assert "no connection (timed out)" in message


def test_a_url_that_cannot_be_asked_for(server, folder):
    url = server.url.replace("models", "two words")
    assert "the URL cannot be used (" in refusal(Source(url), folder)
    for url in ("http://a:port/weights.pth", "http://127.0.0.1/mödels/weights.pth"):
        assert "the URL cannot be used (" in refusal(Source(url), folder)


def test_redirects_are_followed_and_keep_the_range(server, folder):
    server.will(drop_after=4_000)
    server.will(status=302, headers={"Location": "/elsewhere/another-name"})
    path = fetch(Source(server.url), folder, instead=INSTEAD)
    assert path.name == "weights.pth"
    assert path.read_bytes() == server.content
    assert server.paths[1:] == ["/models/weights.pth", "/elsewhere/another-name"]
    assert server.ranges == [None, "bytes=4000-", "bytes=4000-"]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/b", "data:,b"])
def test_redirects_to_other_schemes_are_refused(server, folder, target):
    server.will(status=302, headers={"Location": target})
    message = refusal(Source(server.url), folder)
    assert re.search(f"HTTP status 302 .*{target}", message)


def test_redirects_in_a_circle_end(server, folder):
    server.always.status, server.always.headers["Location"] = 302, server.url
    assert "HTTP status 302" in refusal(Source(server.url), folder)


def test_the_timeout_is_half_a_minute():
    from distill.models import download as request

    assert request.TIMEOUT == 30
