"""Tar files of others: read, plain and in gzip, and no header takes what it claims."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from distill.files import MAX_READ, open_tar, open_tar_file


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
