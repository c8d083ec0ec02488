"""What is verified, recorded, pinned and accepted."""

import hashlib
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.models.download import Source, fetch

ABSENT = "http://models.example/weights.pth"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def refusal(source: Source, folder: Path) -> str:
    with pytest.raises(DistillError) as caught:
        fetch(source, folder, instead="pass FILE")
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(", or pass FILE")
    return message


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"weights.pth.lock"}


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5_000] ^= 1
    path.write_bytes(content)


def test_a_file_is_fetched_once_and_recorded(server, folder, capsys):
    source = Source(server.url, num_bytes=10_000, checksum="sha256:" + sha256(server.content)[:8])
    path = fetch(source, folder, instead="")
    assert path == folder / "weights.pth"
    assert path.read_bytes() == server.content
    assert names(folder) == {"weights.pth", "weights.pth.json"}
    record = json.loads((folder / "weights.pth.json").read_text())
    fetched = datetime.fromisoformat(record.pop("fetched"))
    assert record == {"url": server.url, "bytes": 10_000, "sha256": sha256(server.content)}
    assert fetched.utcoffset() == timedelta(0)
    assert abs(datetime.now(timezone.utc) - fetched) < timedelta(hours=1)
    assert fetch(source, folder, instead="") == path
    assert len(server.requests) == 1
    assert capsys.readouterr().out == f"downloading {server.url} to {path}\n"


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_wrong_checksum_removes_what_came(server, folder, algorithm):
    message = refusal(Source(server.url, checksum=f"{algorithm}:01234567"), folder)
    found = hashlib.new(algorithm, server.content).hexdigest()
    assert f"its {algorithm} is {found}, expected 01234567...; it was removed" in message
    assert names(folder) == set()


def test_a_damaged_file_is_fetched_again(server, folder, capsys):
    path = fetch(Source(server.url), folder, instead="")
    damage(path)
    capsys.readouterr()
    assert fetch(Source(server.url), folder, instead="") == path
    assert path.read_bytes() == server.content
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{path} is damaged or outdated (its sha256 is ")
    assert lines[0].endswith(f", was {sha256(server.content)}); downloading it again")
    assert len(server.requests) == 2


def test_a_file_that_lost_its_end_is_fetched_again(server, folder, capsys):
    path = fetch(Source(server.url), folder, instead="")
    path.write_bytes(server.content[:-1])
    fetch(Source(server.url), folder, instead="")
    assert path.read_bytes() == server.content
    assert (
        "is damaged or outdated (it has 9,999 bytes, had 10,000); downlo" in capsys.readouterr().out
    )


def test_a_damaged_file_without_a_network_names_both(server, folder):
    path = fetch(Source(server.url), folder, instead="")
    damage(path)
    damaged = path.read_bytes()
    server.close()
    message = refusal(Source(server.url, caveat="slow"), folder)
    assert f"{path} is damaged or outdated (its sha256 is {sha256(damaged)}, was" in message
    assert f"), and {server.url} cannot be downloaded: no connection (Connection" in message
    assert message.count("known about this link: slow") == 1
    assert path.read_bytes() == damaged


def test_a_file_that_was_published_anew_is_fetched_again(server, folder, capsys):
    path = fetch(Source(server.url), folder, instead="")
    server.content, server.etag = server.content[::-1], '"second"'
    source = Source(server.url, checksum="sha256:" + sha256(server.content)[:8])
    assert fetch(source, folder, instead="") == path
    assert path.read_bytes() == server.content
    assert "is damaged or outdated (its sha256 is " in capsys.readouterr().out
    server.content = server.content[1:]
    path.unlink()
    assert fetch(Source(server.url, num_bytes=9_999), folder, instead="") == path
    assert json.loads((folder / "weights.pth.json").read_text())["bytes"] == 9_999


def test_what_is_known_does_not_lift_the_hash_that_it_fits(server, folder):
    fetch(Source(server.url), folder, instead="").unlink()
    old = sha256(server.content)
    server.content, server.etag = server.content[::-1], '"second"'
    md5 = "md5:" + hashlib.md5(server.content).hexdigest()
    message = refusal(Source(server.url, num_bytes=10_000, checksum=md5), folder)
    assert f"its sha256 is {sha256(server.content)}, and was {old} on" in message


def test_another_content_of_the_url_is_refused_until_its_record_is_removed(server, folder):
    path = fetch(Source(server.url), folder, instead="")
    old, new = server.content, server.content[::-1]
    record = folder / "weights.pth.json"
    date = json.loads(record.read_text())["fetched"]
    path.unlink()
    server.content, server.etag = new, '"second"'
    message = refusal(Source(server.url), folder)
    assert f"its sha256 is {sha256(new)}, and was {sha256(old)} on {date}" in message
    assert f"; remove {record} to accept the new file, or pass FILE" in message
    assert names(folder) == {"weights.pth.json"}
    record.unlink()
    assert fetch(Source(server.url), folder, instead="").read_bytes() == new


def test_the_same_content_comes_back(server, folder):
    path = fetch(Source(server.url), folder, instead="")
    path.unlink()
    assert fetch(Source(server.url), folder, instead="").read_bytes() == server.content


def test_another_url_is_not_held_to_the_hash(server, folder):
    path = fetch(Source(server.url), folder, instead="")
    path.unlink()
    server.content, server.etag = b"another file", '"second"'
    moved = server.url.replace("models", "moved")
    assert fetch(Source(moved), folder, instead="").read_bytes() == b"another file"
    assert json.loads((folder / "weights.pth.json").read_text())["url"] == moved


def test_a_file_of_another_url_is_not_taken_for_it(server, folder):
    path = fetch(Source(server.url), folder, instead="")
    message = refusal(Source(ABSENT), folder)
    assert f"{path} comes from {server.url}, not from {ABSENT}; move it and" in message
    message = refusal(Source(ABSENT, checksum="sha256:01234567"), folder)
    assert f"comes from {server.url}, not from {ABSENT}" in message


def test_a_file_that_moved_is_known_by_its_checksum(server, folder):
    path = fetch(Source(server.url), folder, instead="")
    moved = Source(ABSENT, checksum="md5:" + hashlib.md5(server.content).hexdigest())
    assert fetch(moved, folder, instead="") == path


def test_a_file_put_there_by_hand_is_accepted_and_recorded(folder):
    folder.mkdir(parents=True)
    path = folder / "weights.pth"
    path.write_bytes(b"by hand")
    source = Source(ABSENT, num_bytes=7, checksum="sha256:" + sha256(b"by hand")[:10])
    assert fetch(source, folder, instead="") == path
    record = json.loads((folder / "weights.pth.json").read_text())
    assert (record["url"], record["bytes"]) == (ABSENT, 7)
    assert record["sha256"] == sha256(b"by hand")
    assert names(folder) == {"weights.pth", "weights.pth.json"}


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"num_bytes": 8}, "it has 7 bytes, expected 8"),
        ({"checksum": "sha256:01234567"}, f"its sha256 is {sha256(b'by hand')}, expected 0123"),
    ],
)
def test_a_wrong_file_put_there_by_hand_is_left_alone(folder, known, words):
    folder.mkdir(parents=True)
    path = folder / "weights.pth"
    path.write_bytes(b"by hand")
    message = refusal(Source(ABSENT, **known), folder)
    assert f"{path} is not the file of {ABSENT}: {words}" in message
    assert "; move it away to have it downloaded" in message
    assert names(folder) == {"weights.pth"}
    assert path.read_bytes() == b"by hand"


HUGE = '{"url": "x", "bytes": 1e999, "sha256": "", "fetched": ""}'


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url": "x"}', '{"bytes": "many"}', "1", HUGE])
def test_a_damaged_record_is_named(server, folder, text):
    fetch(Source(server.url), folder, instead="")
    record = folder / "weights.pth.json"
    record.write_text(text)
    message = refusal(Source(server.url), folder)
    assert f"{record}, the record of a download, is damaged; remove it, or" in message


def test_a_folder_in_its_place_is_named(folder):
    (folder / "weights.pth").mkdir(parents=True)
    message = refusal(Source(ABSENT), folder)
    assert f"{folder / 'weights.pth'} is not a file; move it away" in message


def test_a_relative_folder_is_written_out_in_errors(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server.will(status=404)
    message = refusal(Source(server.url), Path("cache"))
    assert f"put the file at {tmp_path / 'cache' / 'weights.pth'} by hand" in message
    assert fetch(Source(server.url), Path("cache"), instead="") == Path("cache/weights.pth")
