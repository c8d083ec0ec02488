"""Embeds a set of images into a cache on disk, or finds it there.

All ranks call it together. They check the shards that are done in parts, embed the missing ones in
parts, and open the whole. Deliberate limit: the parts are shards, of some thousand rows, so that on
a small set some ranks have nothing to do.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from distill import distributed
from distill.data.images import Images
from distill.embedding_cache import EmbeddingStore, EmbeddingTable
from distill.embedding_cache.folder import locked
from distill.embedding_cache.table import damage
from distill.errors import BadImageError, DistillError
from distill.evaluation.embed import Pass
from distill.evaluation.fill_cache import CacheTask, fill, missing_images
from distill.networks import EmbeddingNetwork
from distill.terminal import progress_bar, say


@dataclass(frozen=True)
class CachedEmbeddings:
    """A complete cache, and what it took.

    Attributes:
        table: The rows.
        num_present: How many were there already.
        seconds: Spent on embedding the others.
    """

    table: EmbeddingTable
    num_present: int
    seconds: float


def cached_embeddings(network: EmbeddingNetwork, task: CacheTask, how: Pass) -> CachedEmbeddings:
    """Return the embeddings of all images, after making those that are not in the cache.

    Images that could not be read are tried again: a disk or a network may have failed in passing.

    Args:
        network: On its device.
        task: What is wanted, and where.
        how: Device, precision, sizes.

    Raises:
        DistillError: Other contents in the folder, a damaged manifest or header, no space, a value
            that the dtype cannot hold, or a folder that not all ranks see.
        BadImageError: From `how.on_bad_images`.
    """
    with ExitStack() as lock:  # entered by the first rank, for all
        is_complete = distributed.from_main(partial(_is_complete, task))
        checked = _check(_found(task), task) if is_complete else None
        if checked is None or checked.damaged or checked.readable:
            distributed.from_main(partial(_lock, lock, task))
            store = _found(task)
            checked = _check(store, task)
            missing = distributed.from_main(partial(_missing, store, checked))
            return _complete(network, task, how, missing=missing, bad=checked.bad)
        table = EmbeddingTable(_found(task), np.array(sorted(checked.bad), dtype=np.int64))
    say(f"{task.description}: all {len(table):,} embeddings are in {task.folder}")
    return CachedEmbeddings(table, num_present=len(table), seconds=0.0)


@dataclass(frozen=True)
class _Checked:
    damaged: list[int]  # shards
    readable: list[int]  # shards with images that could not be read and now can
    bad: set[int]  # images


def _is_complete(task: CacheTask) -> bool:
    """Return whether all shards are marked as done; needs no lock, so that nobody need write."""
    store = EmbeddingStore.find(task.folder)
    if store is None:
        return False
    store.require(task.contents)
    return bool(store.done().all())


def _lock(lock: ExitStack, task: CacheTask) -> None:
    """Enter the folder's lock, and make the cache if nobody has made it meanwhile."""
    lock.enter_context(locked(task.folder, on_wait=say))
    if EmbeddingStore.find(task.folder) is None:
        EmbeddingStore.create(task.folder, task.contents, versions=task.versions)


def _found(task: CacheTask) -> EmbeddingStore:
    store = EmbeddingStore.find(task.folder)
    if store is None:
        raise _not_shared(task.folder)
    store.require(task.contents)
    return store


def _not_shared(folder: Path) -> DistillError:
    return DistillError(
        f"process {distributed.rank()} does not see the embeddings that others wrote to {folder}: "
        "the folder must be on a file system that all processes share; name one with "
        "--teacher-cache DIR or $DISTILL_CACHE"
    )


def _check(store: EmbeddingStore, task: CacheTask) -> _Checked:
    """Check the shards that are done, every rank its part; return what all found."""
    done = distributed.from_main(lambda: np.flatnonzero(store.done()).tolist())
    damaged, readable, bad = set(), set(), set()
    what = "checking embeddings"
    with progress_bar(len(done), description=what, unit="shard", delay=1.0) as bar:
        for shard in done[distributed.rank() :: distributed.world_size()]:
            stored = store.read_shard(shard)
            if stored is None:
                damaged.add(shard)
            else:
                missing = missing_images(store, shard, stored)
                if any(_can_be_read(task.images, image) for image in missing):
                    readable.add(shard)
                else:
                    bad |= missing
            bar.update(distributed.world_size())
    return _Checked(
        damaged=sorted(distributed.union(damaged)),
        readable=sorted(distributed.union(readable)),
        bad=distributed.union(bad),
    )


def _can_be_read(images: Images, image: int) -> bool:
    try:
        images.load(image)
    except BadImageError:
        return False
    return True


def _missing(store: EmbeddingStore, checked: _Checked) -> list[int]:
    """Return the shards that are to be embedded, after unmarking those to repeat; main only."""
    for shard in checked.damaged:
        say(f"{damage(store, shard)}: embedding them again")
    for shard in checked.readable:
        rows = store.rows_of(shard)
        say(
            f"{store.folder} lacks images among {rows.start} to {rows.stop - 1} that can be read "
            "now: embedding them again"
        )
    store.unmark([*checked.damaged, *checked.readable])
    return np.flatnonzero(~store.done()).tolist()


def _complete(
    network: EmbeddingNetwork, task: CacheTask, how: Pass, *, missing: list[int], bad: set[int]
) -> CachedEmbeddings:
    """Embed the missing shards, every rank its part, and open the whole."""
    store, start = _found(task), time.perf_counter()
    num_missing = sum(len(store.rows_of(shard)) for shard in missing)
    num_present = task.contents.shape[0] - num_missing
    say(
        f"{task.description}: {num_present:,} of {task.contents.shape[0]:,} embeddings are in "
        f"{task.folder}"
    )
    mine = np.array_split(missing, distributed.world_size())[distributed.rank()]
    found = fill(store, network, task, how, shards=mine.astype(int).tolist())
    bad = bad | distributed.union(found)  # waits for the last rank, too
    if not store.done().all():
        raise _not_shared(task.folder)
    if distributed.is_main():
        store.write_progress({i: task.images.describe(i) for i in bad})
    seconds = time.perf_counter() - start
    table = EmbeddingTable(store, np.array(sorted(bad), dtype=np.int64))
    return CachedEmbeddings(table, num_present, seconds)
