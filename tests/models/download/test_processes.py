"""Several processes that want one file, and one that dies."""

import os
import subprocess
import sys
from pathlib import Path

import filelock

from distill.models import download as cache
from distill.models.download import Source, fetch

CODE = (
    "import sys; from pathlib import Path\n"
    "from distill.models.download import Source, fetch\n"
    "print(fetch(Source(sys.argv[1]), Path(sys.argv[2]), instead=''))\n"
)


def start(url: str, folder: Path) -> "subprocess.Popen[str]":
    path = os.pathsep.join(entry for entry in sys.path if entry)
    command = [sys.executable, "-c", CODE, url, str(folder)]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_the_second_process_waits_and_finds_the_file(server, folder, monkeypatch):
    said = []

    def say(message):
        said.append(message)
        server.release.set()  # the other process waits for that with its download

    server.always.hold = True
    with start(server.url, folder) as other:
        assert server.asked.wait(30)
        monkeypatch.setattr(cache, "say", say)
        path = fetch(Source(server.url), folder, instead="")
        out, _ = other.communicate(timeout=30)
    assert said == ["waiting for another process that downloads weights.pth"]
    assert out.splitlines()[-1] == str(path)
    assert path.read_bytes() == server.content
    assert len(server.requests) == 1


def test_a_file_put_there_by_hand_while_waiting_is_accepted(folder, monkeypatch):
    folder.mkdir(parents=True)
    held = filelock.FileLock(folder / "weights.pth.lock")
    held.acquire()

    def say(_):
        (folder / "weights.pth").write_bytes(b"by hand")
        held.release()

    monkeypatch.setattr(cache, "say", say)
    source = Source("http://models.example/weights.pth", num_bytes=7)
    assert fetch(source, folder, instead="").read_bytes() == b"by hand"
    fetch(source, folder, instead="")
    assert (folder / "weights.pth.json").exists()


def test_a_process_that_was_killed_is_continued(server, folder):
    server.will(stall_after=4_000)
    with start(server.url, folder) as other:
        assert server.asked.wait(30)
        partial = folder / "weights.pth.partial"
        while not partial.exists() or partial.stat().st_size < 4_000:
            assert other.poll() is None
        other.kill()
    assert fetch(Source(server.url), folder, instead="").read_bytes() == server.content
    assert server.ranges == [None, "bytes=4000-"]
