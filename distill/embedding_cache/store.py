"""The writing side of an embedding cache: rows go to the disk a shard at a time.

    embeddings.npy   (N, D), row i the embedding of image i
    checksums.npy    uint64 (shards,): 0 while a shard is not written, else 2**32 + CRC32C
    manifest.json    what the rows are

A shard's rows are on the disk before its checksum is: whatever interrupts the work, what is marked
as done is done. Rows are written through the file, not through the map, where a full disk would be
a signal that ends the process; readers map it. Shards may be written by several processes, each by
one of them.

Shapes: N images, D embedding width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import google_crc32c
import numpy as np

from distill.embedding_cache import npy
from distill.embedding_cache.folder import (
    CHECKSUMS,
    EMBEDDINGS,
    MANIFEST,
    OTHER_FOLDER,
    explained,
    remedied,
    require_space,
    require_unused,
)
from distill.embedding_cache.manifest import Contents, Manifest, read_manifest
from distill.embedding_cache.storage import array_dtype
from distill.errors import DistillError

MAX_SHARD_ROWS, MAX_SHARD_BYTES = 1024, 64 * 2**20
_CHECKSUM = np.dtype("<u8")
_DONE = 2**32


class EmbeddingStore:
    """One folder of embeddings; made by `create` and `find`.

    Args:
        folder: Where the files lie.
        manifest: What manifest.json says.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.dtype = array_dtype(self.contents.dtype)

    @classmethod
    def create(
        cls, folder: Path, contents: Contents, *, versions: Mapping[str, str] | None = None
    ) -> EmbeddingStore:
        """Make the files at their full size, no shard done; the manifest comes last.

        Args:
            folder: Empty, absent, or what an interrupted `create` left.
            contents: Of the cache.
            versions: Of packages, kept with it.

        Raises:
            DistillError: No space, no permission, or a folder that holds something else.
        """
        row_bytes = contents.shape[1] * array_dtype(contents.dtype).itemsize
        manifest = Manifest(
            contents=contents,
            rows_per_shard=min(MAX_SHARD_ROWS, max(1, MAX_SHARD_BYTES // row_bytes)),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=dict(versions or {}),
        )
        store = cls(folder, manifest)
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            require_unused(folder)
            (folder / EMBEDDINGS).unlink(missing_ok=True)  # its space counts as free
            require_space(folder, npy.file_size(store.dtype, contents.shape))
            npy.create(folder / EMBEDDINGS, store.dtype, contents.shape)
            npy.create(folder / CHECKSUMS, _CHECKSUM, (store.num_shards,))
            manifest.write(folder / MANIFEST)
        return store

    @classmethod
    def find(cls, folder: Path) -> EmbeddingStore | None:
        """Open the cache in a folder, its rows not yet checked; None when there is none.

        Raises:
            DistillError: A file is damaged, missing or cannot be read.
        """
        with explained(folder):
            if not (folder / MANIFEST).exists():
                return None
            with remedied(folder):
                store = cls(folder, read_manifest(folder / MANIFEST))
                npy.require_exact(folder / EMBEDDINGS, store.dtype, store.contents.shape)
                npy.require_exact(folder / CHECKSUMS, _CHECKSUM, (store.num_shards,))
        return store

    @property
    def contents(self) -> Contents:
        """What the rows are."""
        return self.manifest.contents

    @property
    def num_shards(self) -> int:
        """How many parts the rows are written in."""
        return -(-self.contents.shape[0] // self.manifest.rows_per_shard)

    @property
    def first_byte(self) -> int:
        """Where the rows begin in embeddings.npy."""
        return len(npy.header(self.dtype, self.contents.shape))

    def require(self, contents: Contents) -> None:
        """Refuse other contents than the folder has.

        Raises:
            DistillError: Naming every field that differs, with both values.
        """
        differing = self.contents.differences(contents)
        if differing:
            raise DistillError(
                f"{self.folder} holds other embeddings than asked for ({'; '.join(differing)}); "
                f"{OTHER_FOLDER}, or remove this one"
            )

    def rows_of(self, shard: int) -> range:
        """Return the numbers of the rows in a shard."""
        first = shard * self.manifest.rows_per_shard
        return range(first, min(first + self.manifest.rows_per_shard, self.contents.shape[0]))

    def done(self) -> np.ndarray:
        """Return which shards are marked as written, bool (shards,), as the disk says now."""
        return self._checksums() != 0

    def num_done_rows(self) -> int:
        """Return how many rows the shards that are done have."""
        return sum(len(self.rows_of(int(shard))) for shard in np.flatnonzero(self.done()))

    def read_shard(self, shard: int) -> np.ndarray | None:
        """Read a shard that is done and check it.

        Returns:
            (rows, D) as stored, read-only; None when its bytes have another checksum.
        """
        rows, width = self.rows_of(shard), self.contents.shape[1]
        with explained(self.folder), (self.folder / EMBEDDINGS).open("rb") as file:
            file.seek(self._offset(rows.start))
            stored = file.read(len(rows) * width * self.dtype.itemsize)
        if self._checksums()[shard] != _DONE + google_crc32c.value(stored):
            return None
        return np.frombuffer(stored, self.dtype).reshape(len(rows), width)

    def write_shard(self, shard: int, stored: np.ndarray) -> None:
        """Write the rows of a shard, then mark it as done.

        Args:
            shard: Its number.
            stored: (rows, D) as `distill.embedding_cache.storage.encode` returns them.

        Raises:
            DistillError: No space, or no permission.
        """
        rows = self.rows_of(shard)
        assert stored.shape == (len(rows), self.contents.shape[1])
        assert stored.dtype == self.dtype
        content = stored.tobytes()
        with explained(self.folder):
            self._write(EMBEDDINGS, self._offset(rows.start), content)
            self._mark(shard, _DONE + google_crc32c.value(content))

    def unmark(self, shards: Sequence[int]) -> None:
        """Mark shards as not done, to be written again."""
        with explained(self.folder):
            for shard in shards:
                self._mark(shard, 0)

    def write_progress(self, bad_images: Mapping[int, str] | None = None) -> None:
        """Bring manifest.json up to date.

        Args:
            bad_images: Names of the images that could not be read, by index, when all are known.
        """
        changes: dict[str, object] = {"num_done": self.num_done_rows()}
        if bad_images is not None:
            changes["bad_images"] = {str(i): name for i, name in sorted(bad_images.items())}
        updated = replace(self.manifest, **changes)  # type: ignore[arg-type]
        if updated != self.manifest:
            self.manifest = updated
            with explained(self.folder):
                self.manifest.write(self.folder / MANIFEST)

    def _checksums(self) -> np.ndarray:
        shape = (self.num_shards,)
        with explained(self.folder):
            content = (self.folder / CHECKSUMS).read_bytes()
        return np.frombuffer(content[len(npy.header(_CHECKSUM, shape)) :], _CHECKSUM)

    def _offset(self, row: int) -> int:
        return self.first_byte + row * self.contents.shape[1] * self.dtype.itemsize

    def _mark(self, shard: int, checksum: int) -> None:
        start = len(npy.header(_CHECKSUM, (self.num_shards,)))
        self._write(CHECKSUMS, start + 8 * shard, checksum.to_bytes(8, "little"))

    def _write(self, name: str, offset: int, content: bytes) -> None:
        with (self.folder / name).open("r+b", buffering=0) as file:
            file.seek(offset)
            view = memoryview(content)
            while view:  # one call writes at most 2 GiB
                view = view[file.write(view) :]
            os.fsync(file.fileno())
