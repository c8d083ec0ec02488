"""A network's embeddings of a dataset, cached on disk and computed where they are missing.

Training, `distill cache` and all evaluations share this cache. All ranks call these functions
together: each checks its part of the finished shards and embeds its part of the missing ones, and
then opens the whole. Images are embedded once, in the order of the set; a few copies of one shard
and one batch are in memory at a time, for any number of images.

Limit: work is divided by shards of up to 1,024 rows, so that on a small set some ranks are idle.

Shapes: N images, D embedding width.
"""

from __future__ import annotations

import logging
import re
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from distill import distributed
from distill.config import CacheConfig, CacheDtype, TeacherOptions, check_options
from distill.data.images import Images
from distill.data.sources import BadImages, ImageData, data_or_default, open_images
from distill.device import pick_device, pick_precision
from distill.embeddings.embed import (
    DatasetEmbedder,
    Embeddings,
    InferenceConfig,
    Split,
    embedded_batches,
)
from distill.embeddings.store import (
    Contents,
    EmbeddingStore,
    EmbeddingTable,
    SelectedRows,
    encode,
    first_misfit,
    locked,
    missing_rows,
    no_rows,
)
from distill.errors import BadImageError, DistillError
from distill.files import cache_folder
from distill.models.networks import EmbeddingNetwork, prepare_for_device
from distill.models.weights import module_key
from distill.terminal import progress_bar
from teachers.load import load_teacher

logger = logging.getLogger(__name__)

_MAX_NAME = 100  # characters of a folder's name; file systems take 255 bytes


@dataclass(frozen=True)
class StoredEmbeddings:
    """Embeddings of the images at `index`, in that order.

    Attributes:
        features: (N, D), read from disk on access, as float32.
        labels: (N,) int64, -1 where an image has none.
        index: (N,) int64, the image's place in its set; images that could not be read are absent.
    """

    features: SelectedRows
    labels: np.ndarray
    index: np.ndarray

    def in_memory(self) -> Embeddings:
        """Return a copy in memory."""
        return Embeddings(self.features[:], self.labels, self.index, ())


def stored(table: EmbeddingTable, images: Images, index: np.ndarray) -> StoredEmbeddings:
    """Return the embeddings of some images, without those that could not be read.

    Args:
        table: Of all images of the set.
        images: The set.
        index: int64, which of them.
    """
    readable = np.setdiff1d(index, table.bad)
    labels = np.full(len(readable), -1) if images.labels is None else images.labels[readable]
    return StoredEmbeddings(SelectedRows(table, readable), labels, readable)


@dataclass(frozen=True)
class CacheTask:
    """Required content of a cache.

    Attributes:
        folder: Of the cache.
        what: `teacher` or `student`, for messages.
        contents: What the rows must be.
        images: The set.
    """

    folder: Path
    what: str
    contents: Contents
    images: Images

    @property
    def description(self) -> str:
        """What is embedded, in words."""
        return f"{self.what}, {self.images.name}"


@dataclass(frozen=True)
class CachedEmbeddings:
    """A complete cache, and the cost of completing it.

    Attributes:
        table: The rows.
        num_embedded: Images that were embedded now; the others were cached.
        seconds: Spent on embedding them.
    """

    table: EmbeddingTable
    num_embedded: int
    seconds: float

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.table.folder

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.table)

    @property
    def num_bytes(self) -> int:
        """On the disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    @property
    def images_per_second(self) -> float | None:
        """Of this pass, all processes together; None when nothing was embedded."""
        return self.num_embedded / self.seconds if self.num_embedded else None


def cached_embeddings(
    network: EmbeddingNetwork, task: CacheTask, inference: InferenceConfig
) -> CachedEmbeddings:
    """Return the embeddings of all images, and compute those that are not in the cache.

    Images that could not be read are tried again, since a failure may have been temporary.

    Args:
        network: On its device.
        task: Required content and folder.
        inference: Device, precision, sizes.

    Raises:
        DistillError: Other contents in the folder, a damaged manifest or header, no space, a value
            that the dtype cannot hold, or a folder that not all ranks see.
        BadImageError: From `inference.on_bad_images`.
    """
    with ExitStack() as lock:  # entered by the first rank, for all
        if distributed.broadcast_from_rank0(partial(_is_complete, task)):
            store = _opened(task)
            repeated, bad = _check(store, task)
            if not repeated:
                logger.info(
                    f"{task.description}: all {store.contents.shape[0]:,} embeddings are in "
                    f"{task.folder}"
                )
                return CachedEmbeddings(_table(store, bad), num_embedded=0, seconds=0.0)
        distributed.broadcast_from_rank0(partial(_lock, lock, task))
        store = _opened(task)
        repeated, bad = _check(store, task)
        missing = distributed.broadcast_from_rank0(partial(_missing, store, repeated))
        return _complete(network, task, inference, store, missing=missing, bad=bad)


def _is_complete(task: CacheTask) -> bool:
    """Return whether all shards are marked as done; needs no lock and no write permission."""
    store = EmbeddingStore.find(task.folder)
    if store is None:
        return False
    store.require(task.contents)
    return bool(store.done().all())


def _lock(lock: ExitStack, task: CacheTask) -> None:
    """Acquire the folder's lock, and create the cache unless another process did."""
    lock.enter_context(locked(task.folder, on_wait=logger.info))
    if EmbeddingStore.find(task.folder) is None:
        EmbeddingStore.create(task.folder, task.contents)


def _opened(task: CacheTask) -> EmbeddingStore:
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


def _check(store: EmbeddingStore, task: CacheTask) -> tuple[dict[int, str], set[int]]:
    """Check the finished shards, a part on each rank.

    Returns:
        The shards to embed again with the reason, and the images without a row in the others.
    """
    done = distributed.broadcast_from_rank0(lambda: np.flatnonzero(store.done()).tolist())
    repeated: dict[int, str] = {}
    bad: set[int] = set()
    with progress_bar(len(done), description="checking embeddings", unit="shard", delay=1.0) as bar:
        for shard in done[distributed.rank() :: distributed.world_size()]:
            rows, encoded = store.rows_of(shard), store.read_shard(shard)
            if encoded is None:
                repeated[shard] = store.damage(shard)
            else:
                missing = {
                    int(row) + rows.start for row in missing_rows(encoded, task.contents.dtype)
                }
                if any(_can_be_read(task.images, image) for image in missing):
                    repeated[shard] = (
                        f"{store.folder} lacks images among {rows.start} to {rows.stop - 1} that "
                        "can be read now"
                    )
                else:
                    bad |= missing
            bar.update(distributed.world_size())
    return dict(distributed.all_gather_set(set(repeated.items()))), distributed.all_gather_set(bad)


def _can_be_read(images: Images, image: int) -> bool:
    try:
        images.load(image)
    except BadImageError:
        return False
    return True


def _missing(store: EmbeddingStore, repeated: dict[int, str]) -> list[int]:
    """Unmark the shards to repeat and return all shards to embed; on rank 0."""
    for _, reason in sorted(repeated.items()):
        logger.info(f"{reason}: embedding them again")
    store.unmark(sorted(repeated))
    return np.flatnonzero(~store.done()).tolist()


def _complete(
    network: EmbeddingNetwork,
    task: CacheTask,
    inference: InferenceConfig,
    store: EmbeddingStore,
    *,
    missing: list[int],
    bad: set[int],
) -> CachedEmbeddings:
    """Embed the missing shards, a part on each rank, and open the whole."""
    num_images, start = task.contents.shape[0], time.perf_counter()
    num_missing = sum(len(store.rows_of(shard)) for shard in missing)
    logger.info(
        f"{task.description}: {num_images - num_missing:,} of {num_images:,} embeddings are in "
        f"{task.folder}"
    )
    mine = np.array_split(missing, distributed.world_size())[distributed.rank()]
    newly_bad = fill(store, network, task, inference, shards=mine.astype(int).tolist())
    bad = bad | distributed.all_gather_set(newly_bad)  # waits for the last rank, too
    if not store.done().all():
        raise _not_shared(task.folder)
    if distributed.is_main():
        store.name_bad_images({image: task.images.describe(image) for image in bad})
    return CachedEmbeddings(_table(store, bad), num_missing, time.perf_counter() - start)


def _table(store: EmbeddingStore, bad: set[int]) -> EmbeddingTable:
    return EmbeddingTable(store, np.array(sorted(bad), dtype=np.int64))


def fill(
    store: EmbeddingStore,
    network: EmbeddingNetwork,
    task: CacheTask,
    inference: InferenceConfig,
    *,
    shards: list[int],
) -> set[int]:
    """Embed and write shards.

    Args:
        store: Of the cache, locked.
        network: On its device.
        task: What the rows must be.
        inference: Device, precision, sizes.
        shards: Shard numbers, ascending; no other process writes them.

    Returns:
        Indices of the images that could not be read; their rows are NaN.

    Raises:
        DistillError: No space, or a value that the dtype cannot hold.
    """
    bad: set[int] = set()
    if not shards:
        return bad
    dtype, width = task.contents.dtype, task.contents.shape[1]
    order = np.concatenate([store.rows_of(shard) for shard in shards])
    waiting, num_seen = list(shards), 0
    rows = no_rows(0, width, dtype)  # seen, and not yet written
    batches = embedded_batches(
        network, task.images, inference, indices=order, description=task.description
    )
    with closing(batches):  # an error below leaves it unfinished
        for batch in batches:
            seen = order[num_seen : num_seen + len(batch.index) + len(batch.bad)]
            num_seen += len(seen)
            of_batch = no_rows(len(seen), width, dtype)
            of_batch[np.searchsorted(seen, batch.index)] = _encoded(batch, task)
            rows = np.concatenate([rows, of_batch])
            bad.update(np.setdiff1d(seen, batch.index).tolist())
            while waiting and len(rows) >= len(store.rows_of(waiting[0])):
                shard = waiting.pop(0)
                size = len(store.rows_of(shard))
                store.write_shard(shard, rows[:size])
                rows = rows[size:]
    return bad


def _encoded(batch: Embeddings, task: CacheTask) -> np.ndarray:
    """Return a batch as it is stored.

    Raises:
        DistillError: A value that is not finite, before or after conversion to the dtype.
    """
    misfit = first_misfit(batch.features, task.contents.dtype)
    if misfit is None:
        return encode(batch.features, task.contents.dtype)
    row, column = misfit
    value, image = float(batch.features[row, column]), task.images.describe(int(batch.index[row]))
    if not np.isfinite(value):
        precision = task.contents.precision
        remedy = "use other weights"
        if precision != "fp32":  # evaluations use the precision of the run
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


@dataclass
class NetworkCache:
    """The caches of one network on one dataset; all ranks use it together.

    Attributes:
        network: On its device; its weights must not change.
        what: `teacher` or `student`, for messages.
        embedder: Data, device, precision and sizes of the pass.
        bad_images: Called with the images that cannot be read.
        folder: Holds a folder for each split; None: in the cache folder.
        dtype: Of the storage.
    """

    network: EmbeddingNetwork
    what: str
    embedder: DatasetEmbedder
    bad_images: BadImages
    folder: Path | None = None
    dtype: CacheDtype = "fp16"

    _fingerprints: dict[str, str] = field(default_factory=dict, init=False)
    _tables: dict[str, EmbeddingTable] = field(default_factory=dict, init=False)

    @cached_property
    def _weights(self) -> str:
        return distributed.broadcast_from_rank0(lambda: module_key(self.network))

    def embeddings(self, split: Split) -> CachedEmbeddings:
        """Return the embeddings of all images of a split, and compute those that are missing.

        Args:
            split: Which images; there must be some.

        Raises:
            DistillError: See `cached_embeddings`.
            BadImageError: From `bad_images`.
        """
        task = self.task(split)
        made = cached_embeddings(self.network, task, self.embedder.inference)
        self.bad_images(tuple(task.images.describe(int(i)) for i in made.table.bad))
        self.bad_images.share()
        return made

    def stored(self, split: Split, index: np.ndarray | None = None) -> StoredEmbeddings:
        """Return embeddings of a split; the first call completes the cache (`embeddings`).

        Args:
            split: Which images.
            index: Which of them; None: those of the embedder.
        """
        images, readable = self.embedder.split(split)
        if split not in self._tables:
            self._tables[split] = self.embeddings(split).table
        return stored(self._tables[split], images, readable if index is None else index)

    def is_complete(self, split: Split) -> bool:
        """Return whether all embeddings of a split are on disk; writes nothing."""
        store = EmbeddingStore.find(self.task(split).folder)
        return store is not None and bool(store.done().all())

    def task(self, split: Split) -> CacheTask:
        """Return the required content of a split's cache, and its folder."""
        images, _ = self.embedder.split(split)
        if split not in self._fingerprints:
            self._fingerprints[split] = distributed.broadcast_from_rank0(images.fingerprint)
        shown = self.network.input
        contents = Contents(
            network=self.network.spec.name,
            weights=self._weights,
            image_size=shown.image_size,
            crop_fraction=shown.crop_fraction,
            interpolation=shown.interpolation,
            mean=shown.mean,
            std=shown.std,
            images=images.name,
            image_fingerprint=self._fingerprints[split],
            precision=self.embedder.precision,
            dtype=self.dtype,
            shape=(len(images), self.network.embedding_dim),
        )
        if self.folder is not None:
            return CacheTask(self.folder / split, self.what, contents, images)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{contents.network}-{contents.images}")
        folder = cache_folder() / "embeddings" / f"{name[:_MAX_NAME]}-{contents.key()}"
        return CacheTask(folder, self.what, contents, images)


def load_teacher_of(options: TeacherOptions) -> EmbeddingNetwork:
    """Load a teacher with its own input size.

    Raises:
        DistillError: See `teachers.load_teacher`.
    """
    return load_teacher(
        str(options.teacher), weights=options.teacher_weights, image_size=options.teacher_image_size
    )


def cache(
    config: CacheConfig,
    *,
    teacher: EmbeddingNetwork | None = None,
    data: ImageData | None = None,
) -> dict[Split, CachedEmbeddings]:
    """Embed images with a teacher, unless the cache is complete.

    Args:
        config: Teacher, images, split, device.
        teacher: Used instead of the network in `config`.
        data: Used instead of the data in `config`.

    Returns:
        The caches of the requested splits.

    Raises:
        DistillError: Invalid options, or a folder that cannot hold the embeddings.
    """
    check_options(config)
    if not config.teacher.teacher:
        raise DistillError(
            "--teacher is missing: name a teacher (`distill list teachers` shows them)"
        )
    device = distributed.start(pick_device(config.run.device))
    try:
        data = data or open_images(data_or_default(config.images.data))
        sizes: dict[Split, int] = {"train": len(data.train), "val": len(data.val or ())}
        if data.val is None:
            del sizes["val"]
        wanted = [split for split in sizes if config.split.split in ("all", split)]
        if not wanted:
            raise DistillError(f"{data.name} has no validation images; use --split train")
        bad_images = BadImages(config.images.on_bad_image, config.images.max_bad_images)
        bad_images.expect(sum(sizes[split] for split in wanted))
        embedder = DatasetEmbedder(
            data=data,
            train_index=np.arange(len(data.train)),
            val_index=np.arange(len(data.val or ())),
            device=device,
            precision=pick_precision(config.run.precision, device),
            num_workers=config.images.num_workers,
            batch_size=config.teacher.teacher_batch_size,
            bad_images=bad_images,
        )
        caches = NetworkCache(
            network=prepare_for_device(teacher or load_teacher_of(config.teacher), device),
            what="teacher",
            embedder=embedder,
            bad_images=bad_images,
            folder=config.teacher.teacher_cache,
            dtype=config.teacher.cache_dtype,
        )
        return {split: caches.embeddings(split) for split in wanted}
    finally:
        distributed.stop()
