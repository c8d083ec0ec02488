"""Archives: what is wanted comes out, and nothing lands where it should not."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.models.checkpoints import archives
from distill.models.checkpoints.archives import extract, is_archive

FILES = {"m/model.index": b"index" * 50, "m/model.data": bytes(range(256)) * 8, "m/notes": b"x"}
KINDS = ["a.zip", "a.tar.gz", "a.tar"]


def pack(path: Path, files: dict[str, bytes] = FILES) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir("m")
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def is_wanted(name: str) -> bool:
    return "model" in name


@pytest.mark.parametrize("kind", KINDS)
def test_the_wanted_files_are_extracted(tmp_path: Path, kind: str):
    archive, folder = pack(tmp_path / kind), tmp_path / "out"
    folder.mkdir()
    assert is_archive(archive)
    written = extract(archive, folder, is_wanted)
    assert {str(p.relative_to(folder)): p.read_bytes() for p in written} == {
        name: content for name, content in FILES.items() if is_wanted(name)
    }
    assert {p for p in folder.rglob("*") if p.is_file()} == set(written)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["../model", "/model", "m/../../model", "C:/model", "..\\model", "m/.."]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, kind: str, name: str):
    archive = pack(tmp_path / kind, {name: b"evil"})
    folder = tmp_path / "deep" / "out"
    folder.mkdir(parents=True)
    with pytest.raises(DistillError, match="is outside the folder; refused"):
        extract(archive, folder, lambda _: True)
    assert [p for p in tmp_path.rglob("model*") if p.is_file()] == []


def test_links_are_not_followed(tmp_path: Path):
    archive = tmp_path / "a.tar"
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with tarfile.open(archive, "w") as file:
            info = tarfile.TarInfo("model.index")
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
        with pytest.raises(DistillError, match=r"holds model\.index as a link; refused"):
            extract(archive, tmp_path, is_wanted)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        info = zipfile.ZipInfo("model.index")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(DistillError, match=r"holds model\.index as a link; refused"):
        extract(tmp_path / "a.zip", tmp_path, is_wanted)
    assert not (tmp_path / "model.index").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_what_grows_too_large_is_refused(tmp_path: Path, monkeypatch, kind: str):
    archive = pack(tmp_path / kind, {"notes": bytes(3000), "model": bytes(3000)})
    monkeypatch.setattr(archives, "MAX_BYTES", 5999)
    with pytest.raises(DistillError, match="grows beyond"):
        extract(archive, tmp_path, is_wanted)
    monkeypatch.setattr(archives, "MAX_BYTES", 6000)
    assert len(extract(archive, tmp_path, is_wanted)) == 1
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1)
    with pytest.raises(DistillError, match="more than 1 members"):
        extract(archive, tmp_path, is_wanted)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_damage_outside_of_what_is_wanted_is_found_too(tmp_path: Path, kind: str):
    files = {"a": bytes(range(256)) * 40, "model": b"small", "z": bytes(range(255, -1, -1)) * 40}
    archive = pack(tmp_path / kind, files)
    content = bytearray(archive.read_bytes())
    content[120] ^= 0x10  # within `a`
    archive.write_bytes(content)
    with pytest.raises(DistillError, match=r"not a whole archive .*; fetch it again"):
        extract(archive, tmp_path, is_wanted)


def test_what_is_no_archive(tmp_path: Path):
    file = tmp_path / "x.pth.tar"
    file.write_bytes(b"hello")
    assert not is_archive(file)
    assert not is_archive(tmp_path / "absent.tar")
    file = tmp_path / "x.tar.gz"  # damaged, to judge by its name
    file.write_bytes(b"hello")
    assert is_archive(file)
    with pytest.raises(DistillError, match="not a whole archive"):
        extract(file, tmp_path, is_wanted)


def test_a_full_disk_is_not_the_archive_s_fault(tmp_path: Path, monkeypatch):
    archive = pack(tmp_path / "a.zip")

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DistillError, match=r"cannot be extracted to .*No space left"):
        extract(archive, tmp_path, is_wanted)


def test_a_member_without_a_name_is_refused(tmp_path: Path):
    archive = pack(tmp_path / "a.zip", {"nameless": b"x", "model": b"weights"})
    archive.write_bytes(archive.read_bytes().replace(b"nameless", b"\0ameless"))
    with pytest.raises(DistillError, match="holds '', which is outside the folder"):
        extract(archive, tmp_path, is_wanted)


def test_a_zip_member_is_stored_or_deflated(tmp_path: Path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("model", b"weights" * 100)
    with pytest.raises(DistillError, match="'model' is neither stored nor deflated"):
        extract(archive, tmp_path, is_wanted)
