"""The reading side of an embedding cache: rows by image index, out of a memory map.

Shapes: N images, D embedding width, B rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from distill.embedding_cache.folder import EMBEDDINGS, explained
from distill.embedding_cache.storage import decode, missing_rows
from distill.embedding_cache.store import EmbeddingStore
from distill.errors import DistillError


class EmbeddingTable:
    """The embeddings of a set of images, on the disk; a row is read when it is asked for.

    Args:
        store: All its shards are done and have been checked.
        bad: Indices int64 of the images that could not be read, sorted.
    """

    def __init__(self, store: EmbeddingStore, bad: np.ndarray) -> None:
        self.folder = store.folder
        self.contents = store.contents
        self.bad = bad
        with explained(self.folder):
            rows = np.memmap(
                self.folder / EMBEDDINGS,
                dtype=store.dtype,
                mode="r",
                offset=store.first_byte,
                shape=self.contents.shape,
            )
        self._rows = np.asarray(rows)  # the same map; indexing makes plain arrays

    def __len__(self) -> int:
        return self.contents.shape[0]

    @property
    def embedding_dim(self) -> int:
        """D."""
        return self.contents.shape[1]

    def rows(self, index: np.ndarray) -> Tensor:
        """Return the embeddings of images.

        Args:
            index: int64 (B,), in any order.

        Returns:
            (B, D) float32 on the CPU, in memory of its own.

        Raises:
            DistillError: One of the images could not be read when its embedding was to be made.
        """
        stored = self._rows[index]
        absent = missing_rows(stored, self.contents.dtype)
        if len(absent):
            raise DistillError(
                f"{self.folder} has no embedding of image {int(index[absent[0]])}, which could not "
                "be read then; remove the folder and its embeddings are made again"
            )
        return decode(stored, self.contents.dtype)


class SelectedRows:
    """Some rows of a table, in a given order, as an array of which only what is asked for is read.

    Args:
        table: Of all images of a set.
        index: int64 (N,), the images whose embeddings these are.
    """

    def __init__(self, table: EmbeddingTable, index: np.ndarray) -> None:
        self.table = table
        self.index = index

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self.index), self.table.embedding_dim

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray:
        """Read the rows of a slice or of an array of row numbers, (B, D) float32."""
        return self.table.rows(self.index[key]).numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read all rows; each reading makes an array of its own."""
        assert copy is not False, "nothing of it lies in memory"
        return np.asarray(self[:], dtype=dtype)


def open_table(folder: Path) -> EmbeddingTable:
    """Open a complete cache after checking every byte of it; nothing is changed.

    Raises:
        DistillError: No cache, a damaged one, or one that is not complete.
    """
    store = EmbeddingStore.find(folder)
    if store is None:
        raise DistillError(f"{folder} holds no embeddings; `distill cache` makes them")
    done = store.done()
    if not done.all():
        raise DistillError(
            f"{folder} has {store.num_done_rows():,} of {store.contents.shape[0]:,} embeddings; "
            "`distill cache` makes the others"
        )
    bad = []
    for shard in range(store.num_shards):
        stored = store.read_shard(shard)
        if stored is None:
            raise DistillError(f"{damage(store, shard)}; `distill cache` makes these rows again")
        bad.append(missing_rows(stored, store.contents.dtype) + store.rows_of(shard).start)
    return EmbeddingTable(store, np.concatenate(bad))


def damage(store: EmbeddingStore, shard: int) -> str:
    """Say which rows are not what they were."""
    rows = store.rows_of(shard)
    return (
        f"{store.folder / EMBEDDINGS} is damaged in rows {rows.start} to {rows.stop - 1} (or their "
        "entry in checksums.npy is)"
    )
