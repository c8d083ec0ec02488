"""Disks that are full, read-only or not ours."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.models import download as cache_module
from distill.models import download as partial
from distill.models.download import Content, Source, fetch

KINDS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES]


def refusal(source: Source, folder: Path) -> str:
    with pytest.raises(DistillError) as caught:
        fetch(source, folder, instead="pass FILE")
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(
        "; make room or permit access there, or set DISTILL_CACHE=FOLDER to a folder on another "
        "disk, or pass FILE"
    )
    return message


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_that_fails_keeps_what_came(server, folder, monkeypatch, kind):
    append = partial.Partial.append

    def fill(self, chunk):
        append(self, chunk[:1_000])
        raise OSError(kind, os.strerror(kind))

    with monkeypatch.context() as patched:
        patched.setattr(partial.Partial, "append", fill)
        message = refusal(Source(server.url, caveat="slow"), folder)
    path = folder / "weights.pth.partial"
    assert f"{server.url} cannot be kept at {path}: {os.strerror(kind)}; 10,000 byt" in message
    assert "10,000 bytes must fit there; the 1,000 that came are kept; known about" in message
    assert path.read_bytes() == server.content[:1_000]
    assert fetch(Source(server.url), folder, instead="").read_bytes() == server.content
    assert server.ranges == [None, "bytes=1000-"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_last_flush_that_fails_publishes_nothing(server, folder, monkeypatch, kind):
    def fail(_):
        raise OSError(kind, os.strerror(kind))

    with monkeypatch.context() as patched:
        patched.setattr(partial.os, "fsync", fail)
        message = refusal(Source(server.url), folder)
    assert os.strerror(kind) in message
    assert not (folder / "weights.pth").exists()
    assert fetch(Source(server.url), folder, instead="").read_bytes() == server.content


def test_the_bytes_are_flushed_before_the_file_has_its_name(server, folder, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace

    def flush(number):
        events.append(os.readlink(f"/proc/self/fd/{number}").rsplit("/", 1)[-1])
        fsync(number)

    def rename(self, target):
        events.append(f"{self.name} -> {Path(target).name}")
        return replace(self, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    fetch(Source(server.url), folder, instead="")
    assert events[-5:] == [
        "weights.pth.json.partial",
        "weights.pth.json.partial -> weights.pth.json",
        folder.name,
        "weights.pth.partial",
        "weights.pth.partial -> weights.pth",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_cannot_be_made_is_one_sentence(server, folder, monkeypatch, kind):
    def fail(self, *_, **__):
        raise OSError(kind, os.strerror(kind), str(self))

    monkeypatch.setattr(Path, "mkdir", fail)
    message = refusal(Source(server.url, num_bytes=10_000), folder)
    assert f"cannot be kept at {folder}: {os.strerror(kind)}; 10,000 bytes must fit" in message


def test_a_file_in_the_place_of_the_folder(server, tmp_path):
    (tmp_path / "cache").write_text("x")
    assert "cannot be kept at" in refusal(Source(server.url), tmp_path / "cache")


def test_a_folder_that_cannot_be_written_serves_what_it_holds(server, folder, monkeypatch):
    path = fetch(Source(server.url), folder, instead="")

    def fail(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(cache_module.filelock.FileLock, "acquire", fail)
    assert fetch(Source(server.url), folder, instead="") == path
    (folder / "weights.pth.json").unlink()  # as if put there by hand
    assert fetch(Source(server.url), folder, instead="") == path
    assert not (folder / "weights.pth.json").exists()
    path.unlink()
    assert "Permission denied" in refusal(Source(server.url), folder)


def test_a_file_that_cannot_be_read_is_one_sentence(server, folder, monkeypatch):
    path = fetch(Source(server.url), folder, instead="")

    def fail(_, path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Content, "add_file", fail)
    assert f"cannot be kept at {path}: Input/output error" in refusal(Source(server.url), folder)


def in_small_disk(mount: str, url: str) -> subprocess.CompletedProcess[str]:
    """Fetch into a file system of 256 KiB, which ends with the command."""
    code = (
        "import sys; from pathlib import Path\n"
        "from distill.models.download import Source, fetch\n"
        "from distill.errors import DistillError\n"
        "folder = Path(sys.argv[1])\n"
        "try:\n    fetch(Source(sys.argv[2]), folder, instead='pass FILE')\n"
        "except DistillError as error:\n    print(error)\n"
        "print('kept', sum(path.stat().st_size for path in folder.glob('*.partial')))\n"
    )
    shell = 'mount -t tmpfs -o size=256k tmpfs "$1" || exit 77; exec "$2" -c "$3" "$1" "$4"'
    words = ["unshare", "-rm", "sh", "-c", shell, "sh", mount, sys.executable, code, url]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip(f"mounting is not permitted ({done.stderr.strip()})")
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("chunked", [False, True])
def test_a_real_disk_that_is_full(server, tmp_path, chunked):
    server.content = bytes(400_000)
    server.always.chunked = chunked  # then nothing is known beforehand
    _, message, kept = in_small_disk(str(tmp_path), server.url).stdout.splitlines()
    assert kept.startswith("kept ")
    if chunked:
        assert "weights.pth.partial: No space left on device; the " in message
        assert int(kept.split()[1]) > 100_000
    else:
        assert f"needs 400,000 bytes more in {tmp_path}, which has room for " in message
        assert kept == "kept 0"
