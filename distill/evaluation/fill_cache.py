"""Embeds the missing shards of a cache.

Images go through the network once, in the order of the set; what is in memory at a time is one
shard, in a few copies, and one batch, however many images there are.

Shapes: D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill import distributed
from distill.data.images import Images
from distill.embedding_cache import EmbeddingStore
from distill.embedding_cache.manifest import Contents
from distill.embedding_cache.storage import encode, first_misfit, missing_rows, no_rows
from distill.errors import DistillError
from distill.evaluation.embed import Embeddings, Pass, embedded_batches
from distill.evaluation.network_view import NetworkView
from distill.networks import EmbeddingNetwork


@dataclass(frozen=True)
class CacheTask:
    """What is to be in a cache.

    Attributes:
        folder: Of the cache.
        what: `teacher` or `student`, for people.
        contents: What its rows must be.
        images: The set.
        view: What the network is shown of each.
        versions: Of packages, kept with the rows.
    """

    folder: Path
    what: str
    contents: Contents
    images: Images
    view: NetworkView
    versions: Mapping[str, str]

    @property
    def description(self) -> str:
        """What is embedded, in words."""
        return f"{self.what}, {self.images.name}, {self.view.name}"


def fill(
    store: EmbeddingStore,
    network: EmbeddingNetwork,
    task: CacheTask,
    how: Pass,
    *,
    shards: list[int],
) -> set[int]:
    """Embed and write shards.

    Args:
        store: Of the cache, locked.
        network: On its device.
        task: What the rows must be.
        how: Device, precision, sizes.
        shards: Which of the shards, ascending; no other process writes them.

    Returns:
        Indices of the images that could not be read.

    Raises:
        DistillError: No space, or a value that the dtype cannot hold.
    """
    bad: set[int] = set()
    if not shards:
        return bad
    batches = embedded_batches(
        network,
        task.images,
        how,
        view=task.view,
        indices=np.concatenate([store.rows_of(shard) for shard in shards]),
        description=task.description,
    )
    with closing(batches):  # the last one may leave it unfinished
        for shard, stored in _whole_shards(batches, store, task, shards):
            store.write_shard(shard, stored)
            bad |= missing_images(store, shard, stored)
            if distributed.is_main():
                store.write_progress()
    return bad


def _whole_shards(
    batches: Iterator[Embeddings], store: EmbeddingStore, task: CacheTask, shards: list[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Cut batches, which come in the order of the shards, into whole shards.

    Rows of images that could not be read, and are therefore in no batch, stay NaN.
    """
    dtype, width = task.contents.dtype, task.contents.shape[1]
    arrived, wanted = 0, 0
    index, stored = np.zeros(0, np.int64), no_rows(0, width, dtype)
    for shard in shards:
        rows = store.rows_of(shard)
        wanted += len(rows)
        whole = no_rows(len(rows), width, dtype)
        while True:
            inside = (index >= rows.start) & (index < rows.stop)
            whole[index[inside] - rows.start] = stored[inside]
            if arrived >= wanted:
                break
            batch = next(batches)
            arrived += len(batch.index) + len(batch.bad)
            index, stored = batch.index, _encoded(batch, task)
        yield shard, whole


def _encoded(batch: Embeddings, task: CacheTask) -> np.ndarray:
    """Return a batch as it is stored.

    Raises:
        DistillError: A value that is not finite, or not any more.
    """
    misfit = first_misfit(batch.features, task.contents.dtype)
    if misfit is None:
        return encode(batch.features, task.contents.dtype)
    row, column = misfit
    value, image = float(batch.features[row, column]), task.images.describe(int(batch.index[row]))
    if not np.isfinite(value):
        precision = task.contents.precision
        remedy = "use other weights"
        if precision != "fp32":  # measures compute as the run did, which has the flag
            remedy = "compute in fp32 (--precision fp32 in training), or use other weights"
        raise DistillError(
            f"the {task.what}'s embedding of {image} holds {value}, computed in {precision}; "
            + remedy
        )
    larger = "--cache-dtype bf16 or fp32" if task.contents.dtype == "fp16" else "--cache-dtype fp32"
    raise DistillError(
        f"the {task.what}'s embedding of {image} holds {value:g}, too large for "
        f"{task.contents.dtype}; use {larger}"
    )


def missing_images(store: EmbeddingStore, shard: int, stored: np.ndarray) -> set[int]:
    """Return the indices of the images that have no row among those of a shard."""
    rows = missing_rows(stored, store.contents.dtype) + store.rows_of(shard).start
    return set(rows.tolist())
