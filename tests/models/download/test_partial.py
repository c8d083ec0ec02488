"""What a later call continues and what it drops."""

import hashlib
import json

import pytest

from distill.errors import DistillError
from distill.models import download as request_module
from distill.models.download import Partial, Source, fetch


@pytest.fixture
def interrupted(server, folder):
    """A folder with the first 4,000 bytes; the requests so far are forgotten."""
    server.will(drop_after=4_000)
    server.will(status=404)
    with pytest.raises(DistillError, match="4,000 bytes that came are kept"):
        fetch(Source(server.url), folder, instead="")
    server.requests.clear()
    return folder


def edit(folder, **changes):
    """Change the record of the partial file."""
    path = folder / "weights.pth.partial.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def content_of(server, folder, **known) -> bytes:
    return fetch(Source(server.url, **known), folder, instead="").read_bytes()


def test_what_is_left_behind(server, interrupted):
    partial = interrupted / "weights.pth.partial"
    assert partial.read_bytes() == server.content[:4_000]
    record = json.loads((interrupted / "weights.pth.partial.json").read_text())
    assert record == {"url": server.url, "validator": '"first"', "num_bytes": 10_000}


def test_it_is_continued(server, interrupted):
    assert content_of(server, interrupted) == server.content
    assert server.ranges == ["bytes=4000-"]
    assert server.requests[0]["If-Range"] == '"first"'
    record = json.loads((interrupted / "weights.pth.json").read_text())
    assert record["sha256"] == hashlib.sha256(server.content).hexdigest()


def test_a_file_that_changed_since_is_started_anew(server, interrupted):
    server.content, server.etag = server.content[::-1], '"second"'
    assert content_of(server, interrupted) == server.content


def test_another_url_is_started_anew(server, interrupted):
    edit(interrupted, url="http://models.example/weights.pth")
    assert content_of(server, interrupted) == server.content
    assert server.ranges == [None]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", None])
def test_bytes_without_a_record_are_dropped(server, interrupted, text):
    record = interrupted / "weights.pth.partial.json"
    record.unlink() if text is None else record.write_text(text)
    assert content_of(server, interrupted) == server.content
    assert server.ranges == [None]


def test_a_length_that_is_no_number_drops_them(server, interrupted):
    edit(interrupted, num_bytes="many")
    assert content_of(server, interrupted) == server.content
    assert server.ranges == [None]


def test_more_bytes_than_the_file_has_are_dropped(server, interrupted):
    (interrupted / "weights.pth.partial").write_bytes(bytes(10_001))
    assert content_of(server, interrupted) == server.content
    assert server.ranges == [None]


def test_bytes_of_another_length_than_the_known_are_dropped(server, interrupted):
    edit(interrupted, num_bytes=11_000)
    assert content_of(server, interrupted, num_bytes=10_000) == server.content
    assert server.ranges == [None]


def test_all_bytes_need_no_request(server, interrupted):
    (interrupted / "weights.pth.partial").write_bytes(server.content)
    assert content_of(server, interrupted) == server.content
    assert server.requests == []


def test_without_a_validator_nothing_tells_what_the_rest_belongs_to(server, interrupted):
    edit(interrupted, validator=None)
    assert content_of(server, interrupted) == server.content
    assert server.ranges == [None]


def test_a_checksum_does_without_a_validator(server, interrupted):
    edit(interrupted, validator=None)
    checksum = "sha256:" + hashlib.sha256(server.content).hexdigest()
    assert content_of(server, interrupted, checksum=checksum) == server.content
    assert server.ranges == ["bytes=4000-"]
    assert server.requests[0]["If-Range"] is None


def test_damaged_bytes_are_found_in_the_end(server, interrupted):
    (interrupted / "weights.pth.partial").write_bytes(bytes(4_000))
    checksum = "md5:" + hashlib.md5(server.content).hexdigest()
    with pytest.raises(DistillError, match="is not the file: its md5 is") as caught:
        content_of(server, interrupted, checksum=checksum)
    assert "it was removed" in str(caught.value)
    assert not list(interrupted.glob("*.partial*"))
    assert content_of(server, interrupted, checksum=checksum) == server.content


def test_ctrl_c_passes_through_and_the_next_call_continues(server, folder, monkeypatch):
    read = request_module.Answer.read
    chunks = []

    def interrupt(self):
        if chunks:
            raise KeyboardInterrupt
        chunks.append(read(self))
        return chunks[0]

    monkeypatch.setattr(request_module, "CHUNK_BYTES", 1_000)
    with monkeypatch.context() as patched:
        patched.setattr(request_module.Answer, "read", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(Source(server.url), folder, instead="")
    assert (folder / "weights.pth.partial").read_bytes() == chunks[0]
    assert content_of(server, folder) == server.content
    assert server.ranges == [None, f"bytes={len(chunks[0])}-"]


def test_a_disk_that_takes_a_part_gets_the_rest(tmp_path):
    class Slow:
        def __init__(self, file):
            self.file = file

        def write(self, view):
            return self.file.write(view[:7])

        def __getattr__(self, name):
            return getattr(self.file, name)

    with Partial(tmp_path / "a", Source("http://models.example/a")) as partial:
        partial._file = Slow(partial._file)
        partial.append(bytes(range(100)))
        assert partial.path.read_bytes() == bytes(range(100))
