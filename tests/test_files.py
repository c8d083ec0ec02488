import os
import stat
from pathlib import Path

import pytest

from distill.files import write_whole


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch):
    write_whole(tmp_path / "a", b"old")

    def fail(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_the_file_is_as_readable_as_any_other(tmp_path: Path):
    write_whole(tmp_path / "a", b"x")
    (tmp_path / "b").touch()
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in "ab"]
    assert modes[0] == modes[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
