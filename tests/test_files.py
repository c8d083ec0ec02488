import errno
import gzip
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from distill.files import (
    MAX_READ,
    atomic_folder,
    atomic_path,
    atomic_write,
    cache_folder,
    is_file_name,
    open_tar,
    open_tar_file,
)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch):
    atomic_write(tmp_path / "a", b"old")

    def fail(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_the_file_is_as_readable_as_any_other(tmp_path: Path):
    atomic_write(tmp_path / "a", b"x")
    (tmp_path / "b").touch()
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in "ab"]
    assert modes[0] == modes[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_writer_s_private_file_is_like_any_new_one(tmp_path: Path):
    with atomic_path(tmp_path / "a") as temporary:
        temporary.unlink()
        temporary.write_bytes(b"new")
        temporary.chmod(0o600)
    (tmp_path / "b").touch()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_what_fails_leaves_the_old_file_alone(tmp_path: Path):
    (tmp_path / "a").write_text("old")

    def fail() -> None:
        with atomic_path(tmp_path / "a") as temporary:
            temporary.write_bytes(b"ne")
            raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_files_that_belong_together_come_together(tmp_path: Path, monkeypatch):
    folder, order = tmp_path / "export", []
    replace = Path.replace

    def recorded(source: Path, target: Path) -> Path:
        order.append(target.name)
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", recorded)
    with atomic_folder(folder, last="b") as staging:
        for name in "abc":
            (staging / name).write_text(name)
        assert not (folder / "a").exists()
    assert order == ["a", "c", "b"]
    assert sorted(entry.name for entry in folder.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("was_there", [False, True])
def test_files_that_belong_together_leave_nothing_after_a_failure(tmp_path: Path, was_there):
    folder = tmp_path / "export"
    if was_there:
        folder.mkdir()
        (folder / "mine").write_text("mine")

    def fail() -> None:
        with atomic_folder(folder, last="a") as staging:
            (staging / "a").write_text("a")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert folder.exists() == was_there
    assert not was_there or [entry.name for entry in folder.iterdir()] == ["mine"]


def test_a_folder_that_went_away_is_a_refusal_of_the_disk(tmp_path: Path):
    with pytest.raises(OSError, match="its folder is gone") as caught:
        atomic_write(tmp_path / "gone" / "file", b"x")
    assert caught.value.errno == errno.ESTALE


def test_names_of_files():
    assert all(map(is_file_name, ["a.onnx", "ü" * 127, "..a", " "]))
    others = ["", ".", "..", "a/b", "a\\b", "/a", "a\0b", "ü" * 128, "\ud800"]
    assert not any(map(is_file_name, others))


def test_where_the_cache_folder_is(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("DISTILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(cache_folder()) == "/somewhere/distill"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(cache_folder()) == "/home/someone/.cache/distill"
    monkeypatch.setenv("DISTILL_CACHE", "")  # empty counts as not set
    assert str(cache_folder()) == "/home/someone/.cache/distill"
    monkeypatch.setenv("DISTILL_CACHE", "~/mine")
    assert str(cache_folder()) == "/home/someone/mine"


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_members_are_read(tmp_path: Path, pack):
    files = {"a" * 300: b"long names have a header of their own", "b": bytes(3 * MAX_READ // 2)}
    (tmp_path / "x").write_bytes(pack(tar_of(files)))
    with open_tar_file(tmp_path / "x") as file:
        found = {}
        for member in file:
            content = file.extractfile(member)
            assert content is not None
            found[member.name] = b"".join(iter(lambda content=content: content.read(2**20), b""))
    assert found == files


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_claims_too_much_is_refused(kind):
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = kind, 5 * 2**30
    stream = io.BytesIO(entry.tobuf() + tar_of({"b": b"x"}))
    with (
        pytest.raises(tarfile.TarError, match=r"a header claims 5,368,709,120 bytes"),
        open_tar(stream) as file,
    ):
        file.getmembers()
