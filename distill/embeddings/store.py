"""Embeddings on disk: one row for each image of a set, checksummed, resumable, memory-mapped.

    embeddings.npy   (N, D), row i the embedding of image i; NaN where it could not be read
    checksums.npy    uint64 (shards,): 0 while a shard is not written, else 2**32 + CRC32C
    manifest.json    what the rows are, with a checksum of itself

Both arrays are NumPy files (`numpy.lib.format`). Rows are written in shards. A shard's rows reach
the disk before its checksum does, so that a shard marked as done is complete even after a crash.
Rows are written through the file, since a full disk would kill a process that writes to a memory
map; readers use a map. Several processes may write different shards.

Rows are float32 in memory and fp16, bf16 or fp32 on disk. NumPy has no bfloat16: its bits are
stored as uint16. Limit: little-endian machines only.

Shapes: N images, D embedding width, B rows.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import filelock
import google_crc32c
import numpy as np
import torch
from torch import Tensor

from distill.config import CacheDtype
from distill.errors import DistillError
from distill.files import atomic_path, atomic_write
from distill.parsing import as_dataclass, parse_json
from distill.run_directory import versions

FORMAT = 3
EMBEDDINGS, CHECKSUMS, MANIFEST = "embeddings.npy", "checksums.npy", "manifest.json"
LOCK = ".lock"
MAX_SHARD_ROWS, MAX_SHARD_BYTES = 1024, 64 * 2**20
OTHER_FOLDER = (
    "name another folder (--teacher-cache of training and distill cache, --cache of an evaluation)"
)
ELSEWHERE = (
    "keep them elsewhere: set $DISTILL_CACHE to a folder (or, for a teacher's, name one with "
    "--teacher-cache, or keep none with --teacher-view student)"
)
_TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_NUMPY = {"fp16": "<f2", "bf16": "<u2", "fp32": "<f4"}
_CHECKSUM: np.dtype[Any] = np.dtype("<u8")
_DONE = 2**32
_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_NOT_COMPARED = {"images"}  # a renamed dataset is the same dataset


def encode(rows: np.ndarray, dtype: CacheDtype) -> np.ndarray:
    """Round embeddings to what is stored.

    Args:
        rows: (B, D) float32.
        dtype: Of the storage.

    Returns:
        (B, D) float16, float32 or, for bf16, uint16; what is too large for the dtype is infinite,
        see `first_misfit`.
    """
    rounded = torch.from_numpy(rows).to(_TORCH[dtype])
    return (rounded.view(torch.uint16) if dtype == "bf16" else rounded).numpy()


def decode(stored: np.ndarray, dtype: CacheDtype) -> Tensor:
    """Return a copy of stored rows as (B, D) float32.

    Args:
        stored: (B, D) as `encode` returns them, writable.
        dtype: Of the storage.
    """
    bits = torch.from_numpy(stored)
    return (bits.view(torch.bfloat16) if dtype == "bf16" else bits).to(torch.float32)


def first_misfit(rows: np.ndarray, dtype: CacheDtype) -> tuple[int, int] | None:
    """Return row and column of the first value that is not finite when stored; None when all are.

    Args:
        rows: (B, D) float32.
        dtype: Of the storage.
    """
    misfits = torch.nonzero(~torch.isfinite(decode(encode(rows, dtype), dtype)))
    return None if len(misfits) == 0 else (int(misfits[0, 0]), int(misfits[0, 1]))


def no_rows(num_rows: int, width: int, dtype: CacheDtype) -> np.ndarray:
    """Return rows of NaN, which mark images that could not be read."""
    return encode(np.full((num_rows, width), np.nan, np.float32), dtype)


def missing_rows(stored: np.ndarray, dtype: CacheDtype) -> np.ndarray:
    """Return the row numbers (int64) of images that could not be read (`no_rows`)."""
    return np.flatnonzero(torch.isnan(decode(np.array(stored[:, :1]), dtype)[:, 0]).numpy())


@dataclass(frozen=True)
class Contents:
    """Everything that the embeddings in a cache depend on.

    Attributes:
        network: Name of its architecture.
        weights: Hash of its weights (`distill.models.weights.module_key`).
        image_size: Side of the evaluation view in pixels.
        crop_fraction: Of the view (`evaluation_view`).
        interpolation: Of the view.
        mean: Per channel, subtracted from pixels in [0, 1].
        std: Per channel, divided by.
        images: Name of the set, for information; it is not compared.
        image_fingerprint: Of the set (`Images.fingerprint`).
        precision: Of the network, `fp32` or `bf16`.
        dtype: Of the storage.
        shape: (N, D), images and embedding width.
    """

    network: str
    weights: str
    image_size: int
    crop_fraction: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: str
    image_fingerprint: str
    precision: str
    dtype: CacheDtype
    shape: tuple[int, int]

    def key(self) -> str:
        """Return 12 hexadecimal digits of a hash of everything that is compared."""
        text = json.dumps({"format": FORMAT, **self.compared()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def compared(self) -> dict[str, Any]:
        """Return all fields that are compared."""
        return {name: value for name, value in vars(self).items() if name not in _NOT_COMPARED}


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:  # a hash
        return value[:12] + ".."
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json.

    Attributes:
        contents: Of the cache.
        rows_per_shard: Rows between two checksums.
        created: When, as ISO 8601.
        versions: Of the packages that computed the rows.
        bad_images: Names of the images that could not be read, by index; for information.
    """

    contents: Contents
    rows_per_shard: int
    created: str
    versions: dict[str, str]
    bad_images: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file whole."""
        atomic_write(path, _with_checksum({"format": FORMAT, **dataclasses.asdict(self)}))

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read the file; no byte of it may differ from what `write` writes.

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
        version = content.pop("format", None)
        if version != FORMAT:
            raise DistillError(
                f"{path} has format {version} of another version of distill, and this one reads "
                f"format {FORMAT}"
            )
        try:
            return as_dataclass(cls, content)
        except ValueError as error:
            raise DistillError(f"{path} is damaged: {error}") from None


def _with_checksum(content: dict[str, Any]) -> bytes:
    checksum = google_crc32c.value(json.dumps(content).encode())
    return (json.dumps({**content, "checksum": checksum}, indent=2) + "\n").encode()


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn errors of the operating system into a DistillError with a remedy.

    Raises:
        DistillError: Instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise DistillError(
            f"{folder} cannot hold embeddings: {error.strerror or error}; {ELSEWHERE}"
        ) from error


class EmbeddingStore:
    """A folder of embeddings; see `create` and `find`.

    Args:
        folder: Of the files.
        manifest: Content of manifest.json.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.contents = manifest.contents
        self.dtype = np.dtype(_NUMPY[self.contents.dtype])
        self.num_shards = -(-self.contents.shape[0] // manifest.rows_per_shard)

    @classmethod
    def create(cls, folder: Path, contents: Contents) -> EmbeddingStore:
        """Create the files at full size, with no shard done; the manifest is written last.

        Args:
            folder: Empty, absent, or what an interrupted `create` left.
            contents: Of the cache.

        Raises:
            DistillError: No space, no permission, or a folder that holds something else.
        """
        row_bytes = contents.shape[1] * np.dtype(_NUMPY[contents.dtype]).itemsize
        manifest = Manifest(
            contents=contents,
            rows_per_shard=min(MAX_SHARD_ROWS, max(1, MAX_SHARD_BYTES // row_bytes)),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=versions(),
        )
        store = cls(folder, manifest)
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _require_unused(folder)
            (folder / EMBEDDINGS).unlink(missing_ok=True)  # frees its space
            _require_space(folder, row_bytes * contents.shape[0])
            _create_array(folder / EMBEDDINGS, store.dtype, contents.shape)
            _create_array(folder / CHECKSUMS, _CHECKSUM, (store.num_shards,))
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
            try:
                store = cls(folder, Manifest.read(folder / MANIFEST))
                store.map(EMBEDDINGS)
                store.map(CHECKSUMS)
            except DistillError as error:
                raise DistillError(
                    f"{error}; remove the folder {folder} and its embeddings are made again"
                ) from None
        return store

    def map(self, name: str = EMBEDDINGS) -> np.memmap:
        """Return one of the arrays as a read-only memory map.

        Raises:
            DistillError: It is missing or damaged.
        """
        with explained(self.folder):
            if name == CHECKSUMS:
                return _open_array(self.folder / name, _CHECKSUM, (self.num_shards,))
            return _open_array(self.folder / name, self.dtype, self.contents.shape)

    def require(self, contents: Contents) -> None:
        """Refuse contents that differ from the folder's.

        Raises:
            DistillError: Naming every field that differs, with both values.
        """
        wanted = contents.compared()
        differing = [
            f"{name.replace('_', ' ')}: {_short(value)} in the cache, {_short(wanted[name])} "
            "asked for"
            for name, value in self.contents.compared().items()
            if value != wanted[name]
        ]
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
        """Return which shards are marked as done, bool (shards,), read from disk."""
        return self.map(CHECKSUMS) != 0

    def num_done_rows(self) -> int:
        """Return the number of rows in finished shards."""
        return sum(len(self.rows_of(int(shard))) for shard in np.flatnonzero(self.done()))

    def read_shard(self, shard: int) -> np.ndarray | None:
        """Read a shard that is done and check it.

        Returns:
            (rows, D) as stored; None when its bytes have another checksum.
        """
        rows = self.rows_of(shard)
        stored = np.array(self.map()[rows.start : rows.stop])
        is_right = self.map(CHECKSUMS)[shard] == _DONE + google_crc32c.value(stored.tobytes())
        return stored if is_right else None

    def write_shard(self, shard: int, stored: np.ndarray) -> None:
        """Write the rows of a shard, then mark it as done.

        Args:
            shard: Its number.
            stored: (rows, D) as `encode` returns them.

        Raises:
            DistillError: No space, or no permission.
        """
        rows = self.rows_of(shard)
        assert stored.shape == (len(rows), self.contents.shape[1])
        assert stored.dtype == self.dtype
        content = stored.tobytes()
        with explained(self.folder):
            self._write(EMBEDDINGS, rows.start * stored[:1].nbytes, content)
            self._mark(shard, _DONE + google_crc32c.value(content))

    def unmark(self, shards: Sequence[int]) -> None:
        """Mark shards as not done, to be written again."""
        with explained(self.folder):
            for shard in shards:
                self._mark(shard, 0)

    def damage(self, shard: int) -> str:
        """Return a message that names the damaged rows."""
        rows = self.rows_of(shard)
        return (
            f"{self.folder / EMBEDDINGS} is damaged in rows {rows.start} to {rows.stop - 1} (or "
            "their entry in checksums.npy is)"
        )

    def name_bad_images(self, names: Mapping[int, str]) -> None:
        """Write to manifest.json which images could not be read, by index."""
        named = {str(image): name for image, name in sorted(names.items())}
        if named != self.manifest.bad_images:
            self.manifest = dataclasses.replace(self.manifest, bad_images=named)
            with explained(self.folder):
                self.manifest.write(self.folder / MANIFEST)

    def _mark(self, shard: int, checksum: int) -> None:
        self._write(CHECKSUMS, shard * _CHECKSUM.itemsize, checksum.to_bytes(8, "little"))

    def _write(self, name: str, position: int, content: bytes) -> None:
        """Write to an array, `position` bytes after its first, and wait for the disk."""
        start = self.map(name).offset
        with (self.folder / name).open("r+b", buffering=0) as file:
            file.seek(start + position)
            view = memoryview(content)
            while view:  # one call writes at most 2 GiB
                view = view[file.write(view) :]
            os.fsync(file.fileno())


def _create_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Create a NumPy file of zeros atomically, with its disk space reserved.

    A full disk is then an error at the start.
    """
    with atomic_path(path) as temporary:
        np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        if not hasattr(os, "posix_fallocate"):
            return
        with temporary.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
            except OSError as error:
                if error.errno not in _CANNOT_RESERVE:
                    raise


def _open_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """Map a NumPy file that holds exactly one array of a dtype and shape.

    Raises:
        DistillError: It is missing, or holds something else.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise DistillError(f"{path} is missing") from None
    except OSError:
        raise
    except Exception as error:  # numpy raises whole families over damaged bytes
        raise DistillError(f"{path} is damaged: {' '.join(str(error).split())[:100]}") from None
    is_right = (array.dtype, array.shape) == (dtype, shape) and array.flags.c_contiguous
    if not is_right or path.stat().st_size != array.offset + array.nbytes:
        raise DistillError(f"{path} is damaged: it does not hold {shape} {dtype.str} and no more")
    return array


def _require_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise DistillError(
            f"{folder} cannot hold embeddings: they need {num_bytes / 2**30:.1f} GiB "
            f"and {free / 2**30:.1f} GiB are free; {ELSEWHERE}"
        )


def _require_unused(folder: Path) -> None:
    """Refuse a folder that holds more than an interrupted `create` leaves."""
    ours = {EMBEDDINGS, CHECKSUMS, MANIFEST, LOCK}
    foreign = {path.name.removesuffix(".partial") for path in folder.iterdir()} - ours
    if foreign:
        raise DistillError(
            f"{folder} holds {min(foreign)}, which belongs to no embedding cache; {OTHER_FOLDER}"
        )
    checksums = folder / CHECKSUMS
    try:
        has_rows = checksums.exists() and np.load(checksums, allow_pickle=False).any()
    except (ValueError, EOFError):
        has_rows = True
    if has_rows:
        raise DistillError(
            f"{folder / MANIFEST} is missing; put it back, or remove the folder {folder} and its "
            "embeddings are made again"
        )


@contextmanager
def locked(folder: Path, *, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Create the folder and lock it for writing; wait for a process that holds the lock.

    The operating system releases the lock when its holder dies.

    Args:
        folder: Of the cache.
        on_wait: Called once with a sentence when another process holds the lock.

    Raises:
        DistillError: The folder cannot be created or written to.
    """
    lock = filelock.FileLock(folder / LOCK)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            on_wait(f"{folder} is being filled by another process; waiting for it")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


class EmbeddingTable:
    """The embeddings of a set of images on disk; rows are read on access.

    Args:
        store: All its shards are done and have been checked.
        bad: Indices int64 of the images that could not be read, sorted.
    """

    def __init__(self, store: EmbeddingStore, bad: np.ndarray) -> None:
        self.folder, self.contents, self.bad = store.folder, store.contents, bad
        self._rows = np.asarray(store.map())  # the same map; indexing makes plain arrays

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
            DistillError: One of the images could not be read when the cache was made.
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
    """Some rows of a table in a given order, like an array that is read from disk on access.

    Args:
        table: Of all images of a set.
        index: int64 (N,), the images whose embeddings these are.
    """

    def __init__(self, table: EmbeddingTable, index: np.ndarray) -> None:
        self.table, self.index = table, index

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
        """Read all rows into a new array."""
        assert copy is not False, "rows on disk cannot be viewed without a copy"
        return np.asarray(self[:], dtype=dtype)


def open_table(folder: Path) -> EmbeddingTable:
    """Open a complete cache after checking every byte of it; nothing is changed.

    Raises:
        DistillError: No cache, a damaged one, or one that is not complete.
    """
    store = EmbeddingStore.find(folder)
    if store is None:
        raise DistillError(f"{folder} holds no embeddings; `distill cache` makes them")
    if not store.done().all():
        raise DistillError(
            f"{folder} has {store.num_done_rows():,} of {store.contents.shape[0]:,} embeddings; "
            "`distill cache` makes the others"
        )
    bad = []
    for shard in range(store.num_shards):
        stored = store.read_shard(shard)
        if stored is None:
            raise DistillError(f"{store.damage(shard)}; `distill cache` makes these rows again")
        bad.append(missing_rows(stored, store.contents.dtype) + store.rows_of(shard).start)
    return EmbeddingTable(store, np.concatenate(bad))
