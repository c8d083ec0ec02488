"""manifest.json: what the rows of a cache are the embeddings of, and how far the work is.

It carries a checksum of itself and is accepted in the exact form that it was written in, so that
no changed byte is taken for a description.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c

from distill.config import CacheDtype
from distill.errors import DistillError
from distill.files import write_whole
from distill.parsing import parse_json

FORMAT = 1
_NOT_COMPARED = {"images"}  # a set that was renamed is the same set


@dataclass(frozen=True)
class Contents:
    """Everything that decides the numbers in a cache.

    Attributes:
        network: Name of its architecture.
        weights: Hash of its weights (`distill.weights_hash`).
        view: `centre`, or `random 1` and so on.
        view_augmentation: How random views are drawn; None for the centre.
        view_seed: Of random views; None for the centre.
        image_size: Side of the view in pixels.
        crop_fraction: Of the centre crop (`evaluation_view`); None for random views.
        interpolation: Of the view.
        mean: Per channel, subtracted from pixels in [0, 1].
        std: Per channel, divided by.
        images: Name of the set, for people: it is not compared.
        image_fingerprint: Of the set (`Images.fingerprint`).
        precision: Of the network's pass, `fp32` or `bf16`.
        dtype: Of the storage.
        shape: (N, D), images and embedding width.
    """

    network: str
    weights: str
    view: str
    view_augmentation: str | None
    view_seed: int | None
    image_size: int
    crop_fraction: float | None
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: str
    image_fingerprint: str
    precision: str
    dtype: CacheDtype
    shape: tuple[int, int]

    def key(self) -> str:
        """Return 12 hexadecimal digits that stand for all that is compared."""
        text = json.dumps(self._compared(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def differences(self, asked: Contents) -> list[str]:
        """Say field by field in what these contents differ from those asked for."""
        mine, theirs = self._compared(), asked._compared()
        return [
            f"{name.replace('_', ' ')}: {_short(mine[name])} in the cache, {_short(theirs[name])} "
            "asked for"
            for name in mine
            if mine[name] != theirs[name]
        ]

    def _compared(self) -> dict[str, Any]:
        values = vars(self).items()
        return {name: value for name, value in values if name not in _NOT_COMPARED}


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says.

    Attributes:
        contents: Of the cache.
        rows_per_shard: Rows between two checksums.
        created: When, as ISO 8601.
        versions: Of the packages that the rows were made with.
        num_done: Rows that are written; checksums.npy is the truth.
        bad_images: Names of the images that could not be read, by index.
    """

    contents: Contents
    rows_per_shard: int
    created: str
    versions: dict[str, str]
    num_done: int = 0
    bad_images: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file whole."""
        write_whole(path, _with_checksum({"format": FORMAT, **dataclasses.asdict(self)}))


def read_manifest(path: Path) -> Manifest:
    """Read the file.

    Raises:
        DistillError: It is damaged, or of another format.
        OSError: It cannot be read.
    """
    stored = path.read_bytes()
    try:
        content = parse_json(stored.decode())
        content.pop("checksum")
        is_whole = _with_checksum(content) == stored
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise DistillError(f"{path} is damaged")
    if content.pop("format") != FORMAT:
        raise DistillError(f"{path} was written by another version of distill")
    contents: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in content.pop("contents").items()
    }
    return Manifest(contents=Contents(**contents), **content)


def _with_checksum(content: dict[str, Any]) -> bytes:
    checksum = google_crc32c.value(json.dumps(content).encode())
    return (json.dumps({**content, "checksum": checksum}, indent=2) + "\n").encode()


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:  # a hash
        return value[:12] + ".."
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)
