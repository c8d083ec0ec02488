"""Who may write to a cache."""

import errno
import os
import subprocess
import sys

import filelock
import pytest

from distill.embeddings.store import locked
from distill.errors import DistillError

_HOLDER = """
import sys
from pathlib import Path
from distill.embeddings.store import locked

with locked(Path(sys.argv[1]), on_wait=print):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path/c until it reads a line or is killed."""
    command = [sys.executable, "-c", _HOLDER, str(tmp_path / "c")]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "locked\n"
    yield child
    child.kill()
    child.communicate()


@pytest.mark.parametrize("ending", ["leaves", "is killed"])
def test_the_second_waits_and_says_so_once(tmp_path, holder, ending):
    said = []

    def on_wait(message: str) -> None:
        said.append(message)
        if ending == "leaves":
            holder.stdin.write("go\n")
            holder.stdin.flush()
        else:
            holder.kill()

    with locked(tmp_path / "c", on_wait=on_wait):
        assert said == [f"{tmp_path / 'c'} is being filled by another process; waiting for it"]
    with locked(tmp_path / "c", on_wait=on_wait):
        assert len(said) == 1


def test_a_folder_that_cannot_be_locked(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with (
        pytest.raises(DistillError, match="Read-only file system; keep them elsewhere"),
        locked(tmp_path / "c", on_wait=print),
    ):
        pass


def test_what_happens_inside_is_not_explained(tmp_path):
    with pytest.raises(OSError, match="broken"), locked(tmp_path / "c", on_wait=print):
        raise OSError("broken")
