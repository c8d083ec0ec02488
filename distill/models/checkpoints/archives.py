"""Extracts files from untrusted zip and tar archives.

Only the requested regular files are written. An archive with an absolute path, a `..`, a link among
the requested files, or more than `MAX_BYTES` is refused. Archives are read to the end to verify
their checksums: CRC-32 of every zip member, CRC-32 of a gzip stream.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from distill.errors import DistillError
from distill.files import open_tar_file

MAX_BYTES = 32 * 2**30  # ten times the largest published checkpoint
MAX_MEMBERS = 10_000
_CHUNK = 2**20
_NAMES = (".zip", ".tar.gz", ".tgz")  # not .tar: PyTorch checkpoints are called .pth.tar
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error),
    *(EOFError, OSError, ValueError, NotImplementedError, RuntimeError),
)


class Member(NamedTuple):
    """One member of an archive."""

    name: str
    is_file: bool
    is_link: bool
    open: Callable[[], IO[bytes] | None]


def is_archive(path: Path) -> bool:
    """Return whether a file is a zip or tar archive, by its name or its content."""
    if path.name.lower().endswith(_NAMES):
        return True
    try:
        if zipfile.is_zipfile(path):
            return True
        with open_tar_file(path):
            return True
    except _DAMAGED:
        return False


def extract(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """Extract the wanted files of an archive to an existing folder, and read all of it once.

    Args:
        archive: A zip, tar or gzip-compressed tar file.
        folder: Destination; the folders of the archive are kept.
        wanted: Returns by name whether to write a file.

    Returns:
        The files written.

    Raises:
        DistillError: The archive is damaged, unsafe or too large; discard the files then.
    """
    written: list[Path] = []
    left = MAX_BYTES
    try:
        members_of = _zip_members if zipfile.is_zipfile(archive) else _tar_members
        with closing(members_of(archive)) as members:
            for count, member in enumerate(members):
                if count >= MAX_MEMBERS:
                    raise DistillError(f"{archive} has more than {MAX_MEMBERS:,} members; refused")
                if member.is_link and wanted(member.name):
                    raise DistillError(f"{archive} holds {member.name} as a link; refused")
                if not member.is_file:
                    continue
                target = _safe_target(archive, folder, member.name)
                left -= _copy(member, target if wanted(member.name) else None, left)
                if left < 0:
                    raise DistillError(
                        f"{archive} grows beyond {MAX_BYTES / 2**30:.0f} GiB; refused"
                    )
                if wanted(member.name):
                    written.append(target)
    except DistillError:
        raise
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DistillError(f"{archive} cannot be extracted to {folder}: {error}") from error
        reason = str(error).partition("\n")[0]
        raise DistillError(
            f"{archive} is not a whole archive ({reason}); fetch it again"
        ) from error
    return written


def _zip_members(archive: Path) -> Generator[Member, None, None]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # With LZMA a few bytes may expand to gigabytes.
                raise zipfile.BadZipFile(f"{info.filename!r} is neither stored nor deflated")
            is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
            is_file = not info.filename.endswith("/") and not is_link  # names may be empty
            yield Member(info.filename, is_file, is_link, partial(file.open, info))


def _tar_members(archive: Path) -> Generator[Member, None, None]:
    with open_tar_file(archive) as file:
        for info in file:
            is_link = info.issym() or info.islnk()
            yield Member(info.name, info.isreg(), is_link, partial(file.extractfile, info))
        while file.fileobj is not None and file.fileobj.read(_CHUNK):
            pass  # to the end of the stream, where its checksum is


def _safe_target(archive: Path, folder: Path, name: str) -> Path:
    """Return the path of a member; refuse names that lead out of the folder."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or ":" in parts.parts[0]:
        raise DistillError(f"{archive} holds {name!r}, which is outside the folder; refused")
    return folder.joinpath(*parts.parts)


def _copy(member: Member, target: Path | None, most: int) -> int:
    """Read a member, into `target` if given; return its size, at most `most` + 1."""
    content = member.open()
    assert content is not None, "a regular file has content"
    size = 0
    with ExitStack() as stack:
        stack.enter_context(content)
        out = None
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            out = stack.enter_context(target.open("wb"))
        while chunk := content.read(_CHUNK):
            size += len(chunk)
            if size > most:
                return most + 1
            if out is not None:
                out.write(chunk)
    return size
