"""Requests until the file is whole, and when they end."""

import shutil

import pytest

from distill.errors import DistillError
from distill.models import download as partial
from distill.models import download as request
from distill.models import download as transfer
from distill.models.download import Source, fetch


def fetched(server, folder, **known) -> bytes:
    path = fetch(Source(server.url, **known), folder, instead="pass FILE")
    assert not list(folder.glob("*.partial*"))
    return path.read_bytes()


def failure(server, folder, **known) -> str:
    with pytest.raises(DistillError) as caught:
        fetch(Source(server.url, **known), folder, instead="pass FILE")
    assert not (folder / "weights.pth").exists()
    return str(caught.value)


def test_one_request_is_enough_where_nothing_goes_wrong(server, folder, pauses):
    assert fetched(server, folder) == server.content
    assert (server.ranges, pauses) == ([None], [])


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_dropped_connection_is_continued(server, folder, pauses, reset, chunked):
    server.will(drop_after=4_096, reset=reset, chunked=chunked)
    server.will(drop_after=2_000)
    assert fetched(server, folder) == server.content
    if not reset:  # which may take back what was under way
        assert server.ranges == [None, "bytes=4096-", "bytes=6096-"]
    assert [head["If-Range"] for head in server.requests[1:]] == ['"first"', '"first"']
    assert pauses == [1, 1]


def test_a_silent_server_is_asked_again(server, folder, brief_timeout, pauses, capsys):
    server.will(stall_after=4_000)
    assert fetched(server, folder) == server.content
    assert server.ranges == [None, "bytes=4000-"]
    assert "the connection broke (timed out); asking again in 1 s" in capsys.readouterr().out


def test_a_server_that_never_answers_is_given_up(server, folder, brief_timeout, pauses):
    server.always.hold = True
    server.always.status = 200
    server.always.stall_after = 0
    message = failure(server, folder)
    assert "(timed out), 5 times in a row without a new byte; put the file at" in message
    assert (len(server.requests), pauses) == (5, [1, 2, 4, 8])


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_busy_server_is_asked_again(server, folder, pauses, status):
    server.will(status=status)
    server.will(status=status)
    assert fetched(server, folder) == server.content
    assert pauses == [1, 2]


def test_a_busy_server_is_given_up_and_the_caveat_repeated(server, folder, pauses):
    server.always.status = 503
    message = failure(server, folder, caveat="the host is slow")
    assert "HTTP status 503 (Service Unavailable), 5 times in a row" in message
    assert "; known about this link: the host is slow; put the file at" in message
    assert (len(server.requests), pauses) == (5, [1, 2, 4, 8])


def test_every_new_byte_gives_new_patience(server, folder, pauses):
    for _ in range(3):
        for _ in range(4):
            server.will(status=503)
        server.will(drop_after=1_000)
    assert fetched(server, folder) == server.content
    assert pauses == [1, 2, 4, 8, 1] * 3


def test_what_came_before_giving_up_is_kept(server, folder):
    server.will(drop_after=3_000)
    server.always.status = 503
    assert "(the 3,000 bytes that came are kept)" in failure(server, folder)
    server.always.status = 200
    assert fetched(server, folder) == server.content
    assert server.ranges[-1] == "bytes=3000-"


def test_a_network_that_goes_away_meanwhile_is_waited_for(server, folder, pauses):
    server.will(drop_after=3_000)
    server.always.status = 503
    seen = []

    def end_network(seconds):
        seen.append(seconds)
        server.close()

    transfer.pause = end_network  # put back by the fixture `pauses`
    message = failure(server, folder)
    assert "no connection (Connection refused), 5 times in a row" in message
    assert seen == [1, 1, 2, 4, 8]


def test_a_server_without_ranges_starts_from_zero(server, folder):
    server.will(drop_after=4_000)
    server.will(drop_after=6_000, ignore_range=True)
    server.will(ignore_range=True)
    assert fetched(server, folder) == server.content
    assert server.ranges == [None, "bytes=4000-", "bytes=6000-"]


def test_a_server_that_repeats_itself_is_given_up(server, folder, pauses):
    server.always.drop_after, server.always.ignore_range = 4_000, True
    message = failure(server, folder)
    assert "ended after 4,000 of 10,000 bytes, 5 times in a row without a new byte" in message
    assert (len(server.requests), pauses) == (6, [1, 1, 2, 4, 8])


def test_a_server_that_sends_pieces_is_asked_for_all(server, folder):
    server.always.most = 3_000
    assert fetched(server, folder) == server.content
    assert server.ranges == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]


def test_a_file_that_changes_meanwhile_is_started_anew(server, folder, monkeypatch):
    server.will(drop_after=4_000)

    def change(_):
        server.content, server.etag = server.content[::-1], '"second"'

    monkeypatch.setattr(transfer, "pause", change)
    assert fetched(server, folder) == server.content
    assert [head["If-Range"] for head in server.requests] == [None, '"first"']


@pytest.mark.parametrize(
    "wrong",
    [
        {"ETag": '"second"'},
        {"Content-Range": "bytes 4000-9999/20000"},
        {"Content-Range": "bytes 3999-9998/10000"},
        {"Content-Range": "bytes 40-9999/10000"},
        {"Content-Range": "4000-9999/10000"},
        {"Content-Range": None},
    ],
)
def test_a_rest_that_does_not_fit_is_not_appended(server, folder, wrong):
    server.will(drop_after=4_000)
    server.will(ignore_if_range=True, headers=wrong)
    assert fetched(server, folder) == server.content
    assert server.ranges == [None, "bytes=4000-", None]


def test_a_rest_of_unstated_whole_is_appended(server, folder):
    server.will(drop_after=4_000)
    server.will(headers={"Content-Range": "bytes 4000-9999/*"})
    assert fetched(server, folder) == server.content
    assert len(server.requests) == 2


def test_a_rest_of_unstated_whole_is_continued_too(server, folder):
    server.will(chunked=True, drop_after=4_096)
    server.will(drop_after=2_000, headers={"Content-Range": "bytes 4096-9999/*"})
    assert fetched(server, folder) == server.content
    assert server.ranges == [None, "bytes=4096-", "bytes=6096-"]


def test_last_modified_serves_where_there_is_no_strong_etag(server, folder):
    server.etag, server.modified = 'W/"weak"', "Mon, 01 Jan 2024 00:00:00 GMT"
    server.will(drop_after=4_000)
    assert fetched(server, folder) == server.content
    assert server.requests[1]["If-Range"] == server.modified


@pytest.mark.parametrize("how", ["chunked", "endless"])
def test_a_file_of_unstated_length_ends_where_it_ends(server, folder, how):
    setattr(server.always, how, True)
    assert fetched(server, folder) == server.content


def test_a_known_length_tells_a_short_answer(server, folder):
    server.will(endless=True, drop_after=4_000)
    assert fetched(server, folder, num_bytes=10_000) == server.content
    assert server.ranges == [None, "bytes=4000-"]


def test_an_empty_file_is_a_file(server, folder):
    server.content = b""
    assert fetched(server, folder) == b""


def test_all_bytes_and_no_end_are_completed_by_416(server, folder):
    server.will(chunked=True, drop_after=10_000)
    assert fetched(server, folder) == server.content
    assert server.ranges == [None, "bytes=10000-"]


def test_416_for_another_length_starts_anew(server, folder):
    server.will(chunked=True, drop_after=10_000)
    server.will(status=416, headers={"Content-Range": "bytes */9999"})
    assert fetched(server, folder) == server.content
    assert server.ranges == [None, "bytes=10000-", None]


def test_416_without_a_length_starts_anew(server, folder):
    server.will(drop_after=4_000)
    server.will(status=416)
    assert fetched(server, folder) == server.content
    assert server.ranges == [None, "bytes=4000-", None]


def test_a_content_length_beyond_the_end_is_given_up(server, folder, pauses):
    server.always.announce = 12_000
    message = failure(server, folder)
    assert "5 times in a row without a new byte" in message
    assert len(server.requests) == 6


def test_a_content_length_that_is_not_the_known_one_is_refused_at_once(server, folder):
    message = failure(server, folder, num_bytes=9_000)
    assert "cannot be downloaded: it has 10,000 bytes, expected 9,000; put the file" in message
    assert len(server.requests) == 1


def test_too_long_an_answer_is_not_read_to_its_end(server, folder, monkeypatch):
    monkeypatch.setattr(request, "CHUNK_BYTES", 100)
    server.always.endless = True
    message = failure(server, folder, num_bytes=1_000)
    assert "is not the file: it has 1,100 bytes, expected 1,000; it was removed" in message
    assert not list(folder.glob("*.partial*"))


def test_more_bytes_than_the_server_stated_are_not_the_file(server, folder, monkeypatch):
    server.will(drop_after=4_000)
    server.will(chunked=True, headers={"Content-Range": "bytes 4000-9999/10000"})

    def lengthen(_):
        server.content += bytes(10)

    monkeypatch.setattr(transfer, "pause", lengthen)
    message = failure(server, folder)
    assert "is not the file: it has 10,010 bytes, expected 10,000; it was removed" in message


def test_memory_holds_one_chunk(server, folder, monkeypatch):
    sizes = []
    append = partial.Partial.append

    def measure(self, chunk):
        sizes.append(len(chunk))
        append(self, chunk)

    monkeypatch.setattr(partial.Partial, "append", measure)
    server.content = bytes(5 << 20)
    assert fetched(server, folder) == server.content
    assert max(sizes) <= 1 << 20


def test_too_little_room_is_said_before_anything_is_written(server, folder, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=9_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = failure(server, folder)
    assert f"{server.url} needs 10,000 bytes more in {folder}, which has room for 9,999;" in message
    assert "set DISTILL_CACHE=FOLDER to a folder on another disk, or pass FILE" in message
    assert not list(folder.glob("*.partial*"))


def test_room_is_needed_for_the_rest_alone(server, folder, monkeypatch):
    server.will(drop_after=4_000)
    server.will(status=404)
    failure(server, folder)
    usage = shutil.disk_usage("/")._replace(free=6_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert fetched(server, folder) == server.content


def test_the_bar_counts_bytes_and_what_was_there(server, folder, monkeypatch):
    made = []

    def keep(*args, **options):
        bar = transfer_bar(*args, **options)
        made.append((args, options, bar))
        return bar

    transfer_bar = transfer.progress_bar
    monkeypatch.setattr(transfer, "progress_bar", keep)
    server.will(drop_after=4_000)
    server.will(status=404)
    failure(server, folder)
    fetched(server, folder)
    assert [(args, options) for args, options, _ in made] == [
        ((None,), {"initial": 0, "description": "weights.pth", "unit": "B"}),
        ((10_000,), {"initial": 4_000, "description": "weights.pth", "unit": "B"}),
    ]
    assert made[1][2].total == 10_000
