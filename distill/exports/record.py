"""The record of an export folder, `export.json`: its files and the weights they come from.

A file is overwritten only if the same weights were exported to it and it has not changed since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from distill.errors import DistillError
from distill.files import is_file_name
from distill.parsing import as_dataclass, parse_json

RECORD, CARD = "export.json", "model-card.md"


@dataclass(frozen=True)
class Artifact:
    """An exported file.

    Attributes:
        name: Of the file.
        format: A key of `distill.exports.formats.FILE_FORMATS`.
        sha256: Of its content, in hexadecimal.
        num_bytes: Its size.
        l2_normalize: Whether its embeddings have length 1.
        absolute_difference: Largest difference of a number from the original network's.
        relative_difference: Largest length of a row's difference over that of the original's row.
        milliseconds: Time for an image by batch size, original and exported; empty when not timed.
        versions: Of what wrote it.
    """

    name: str
    format: Literal["onnx", "torch-export", "safetensors", "safetensors-plain"]
    sha256: str
    num_bytes: int
    l2_normalize: bool
    absolute_difference: float
    relative_difference: float
    milliseconds: Mapping[str, Sequence[float]]
    versions: dict[str, str]


@dataclass(frozen=True)
class Record:
    """The content of an export folder.

    Attributes:
        weights: SHA-256 of the weights file that was exported.
        artifacts: The files, in the order they were first written.
        card: SHA-256 of the model card.
    """

    weights: str
    artifacts: tuple[Artifact, ...] = ()
    card: str = ""

    def artifact(self, name: str) -> Artifact | None:
        """Return the file of that name, None when there is none."""
        return next((each for each in self.artifacts if each.name == name), None)

    def with_artifacts(self, new: Sequence[Artifact], folder: Path) -> Record:
        """Return the record with files added or replaced; those that changed since are left out."""
        names = {each.name for each in new}
        kept = [
            each
            for each in self.artifacts
            if each.name not in names and _is_unchanged(folder / each.name, each.sha256)
        ]
        return Record(self.weights, (*kept, *new))

    def write(self, folder: Path) -> None:
        """Write the record as `read_record` reads it."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        (folder / RECORD).write_text(text, encoding="utf-8")


def read_record(folder: Path) -> Record | None:
    """Read the record of an export folder; None when there is none.

    Raises:
        DistillError: It is damaged.
    """
    file = folder / RECORD
    try:
        record = as_dataclass(Record, parse_json(file.read_text(encoding="utf-8")))
        if not all(is_file_name(each.name) for each in record.artifacts):
            raise ValueError("it names a file outside the folder")
        return record
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DistillError(
            f"{file} is not a record of an export ({error}); remove the folder or choose another "
            "--output"
        ) from error


def require_free(folder: Path, names: Sequence[str], *, weights: str, overwrite: bool) -> Record:
    """Refuse to write over anything but an earlier export of the same weights; writes nothing.

    Args:
        folder: Of the export.
        names: Of the files.
        weights: SHA-256 of the weights file that is exported.
        overwrite: Whether earlier exports may be replaced.

    Returns:
        The record of the folder so far.

    Raises:
        DistillError: The folder holds other files, or an earlier export without `overwrite`.
    """
    if folder.exists() and not folder.is_dir():
        raise DistillError(f"{folder} is a file; name a folder with --output")
    if not folder.parent.is_dir():
        raise DistillError(f"the folder of --output {folder} does not exist; make it first")
    record = read_record(folder) or Record(weights)
    if record.weights != weights:
        raise DistillError(f"{folder} holds the export of other weights; choose another --output")
    written = {each.name: each.sha256 for each in record.artifacts}
    for name in (*names, CARD):
        file = folder / name
        digest = record.card if name == CARD else written.get(name, "")
        if file.exists() and not _is_unchanged(file, digest):
            raise DistillError(
                f"{file} was not written by an export of these weights, or was changed since; "
                "move it away or choose another --output"
            )
        if file.exists() and name != CARD and not overwrite:
            raise DistillError(
                f"{file} is there from an earlier export; replace it with --overwrite or choose "
                "another --output"
            )
    return record


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as content:
        digest = hashlib.sha256()
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _is_unchanged(file: Path, digest: str) -> bool:
    return file.is_file() and sha256(file) == digest
