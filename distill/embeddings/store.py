"""Files of one array in NumPy's format, made at their full size and exact to the byte.

The header is written and compared here rather than by NumPy, whose padding may change: a file is
right when it starts with the very bytes that were expected and is as long as expected.

How embeddings are stored: float32 in, fp16, bf16 or fp32 on the disk, float32 out.

NumPy has no bfloat16: its bits are stored as uint16. Deliberate limit: little-endian, as the
machines are that PyTorch runs on.

Shapes: B rows, D embedding width.

manifest.json: what the rows of a cache are the embeddings of, and how far the work is.

It carries a checksum of itself and is accepted in the exact form that it was written in, so that
no changed byte is taken for a description.

The folder of a cache: what its files are called, who may write, what to say when none may.

The reading side of an embedding cache: rows by image index, out of a memory map.

Shapes: N images, D embedding width, B rows.

The writing side of an embedding cache: rows go to the disk a shard at a time.

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

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
from distill.parsing import parse_json

_MAGIC, _ALIGNMENT = b"\x93NUMPY\x01\x00", 64
_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Return the first bytes of a file of version 1.0; the array follows them."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    padding = -(len(_MAGIC) + 2 + len(text) + 1) % _ALIGNMENT
    text += b" " * padding + b"\n"
    return _MAGIC + len(text).to_bytes(2, "little") + text


def file_size(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Return the length of the whole file in bytes."""
    return len(header(dtype, shape)) + dtype.itemsize * int(np.prod(shape, dtype=np.int64))


def create(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Make a file of zeros whose space on the disk is taken, whole or not at all.

    Raises:
        OSError: No space, or no permission.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(header(dtype, shape))
        file.flush()
        _reserve(file.fileno(), file_size(dtype, shape))


def require_exact(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Refuse a file that does not start with the expected header or has another length.

    Raises:
        DistillError: Naming the file and what is wrong with it.
        OSError: It cannot be read.
    """
    expected, size = header(dtype, shape), file_size(dtype, shape)
    try:
        with path.open("rb") as file:
            found, length = file.read(len(expected)), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise DistillError(f"{path} is missing") from None
    if length != size:
        raise DistillError(f"{path} is damaged: it has {length:,} bytes and not {size:,}")
    if found != expected:
        raise DistillError(f"{path} is damaged: its header is not that of {shape} {dtype.str}")


def _reserve(descriptor: int, size: int) -> None:
    """Take the space now, so that a full disk ends the work before it starts, not in its middle."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise
    os.ftruncate(descriptor, size)


_TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_NUMPY = {"fp16": "<f2", "bf16": "<u2", "fp32": "<f4"}


def array_dtype(dtype: CacheDtype) -> np.dtype:
    """Return the dtype of the array on the disk."""
    return np.dtype(_NUMPY[dtype])


def encode(rows: np.ndarray, dtype: CacheDtype) -> np.ndarray:
    """Round embeddings to what is stored.

    Args:
        rows: (B, D) float32.
        dtype: Of the storage.

    Returns:
        (B, D) of `array_dtype(dtype)`; what is too large for it is infinite, see `first_misfit`.
    """
    rounded = torch.from_numpy(rows).to(_TORCH[dtype])
    return (rounded.view(torch.uint16) if dtype == "bf16" else rounded).numpy()


def decode(stored: np.ndarray, dtype: CacheDtype) -> Tensor:
    """Return what `encode` was given, (B, D) float32 in memory of its own, as far as it was kept.

    Args:
        stored: (B, D) of `array_dtype(dtype)`, writable.
        dtype: Of the storage.
    """
    bits = torch.from_numpy(stored)
    rows = bits.view(torch.bfloat16) if dtype == "bf16" else bits
    return rows.to(torch.float32)


def first_misfit(rows: np.ndarray, dtype: CacheDtype) -> tuple[int, int] | None:
    """Return row and column of the first value that is not finite when stored, None when all are.

    Args:
        rows: (B, D) float32.
        dtype: Of the storage.
    """
    limit = torch.finfo(_TORCH[dtype]).max
    if rows.size == 0:
        return None
    low, high = torch.aminmax(torch.from_numpy(rows))  # NaN when there is one
    if -limit <= low and high <= limit:
        return None
    misfits = torch.nonzero(~torch.isfinite(decode(encode(rows, dtype), dtype)))
    # A value just above the limit may be rounded to it.
    return None if len(misfits) == 0 else (int(misfits[0, 0]), int(misfits[0, 1]))


def no_rows(num_rows: int, width: int, dtype: CacheDtype) -> np.ndarray:
    """Return rows of NaN, which stand for images that could not be read."""
    return encode(np.full((num_rows, width), np.nan, np.float32), dtype)


def missing_rows(stored: np.ndarray, dtype: CacheDtype) -> np.ndarray:
    """Return the numbers int64 of the rows that `no_rows` left."""
    first = decode(np.array(stored[:, :1]), dtype)[:, 0]
    return np.flatnonzero(torch.isnan(first).numpy())


FORMAT = 1
_NOT_COMPARED = {"images"}  # a set that was renamed is the same set


@dataclass(frozen=True)
class Contents:
    """Everything that decides the numbers in a cache.

    Attributes:
        network: Name of its architecture.
        weights: Hash of its weights (`distill.models.weights`).
        view: `center`, or `random 1` and so on.
        view_augmentation: How random views are drawn; None for the center.
        view_seed: Of random views; None for the center.
        image_size: Side of the view in pixels.
        crop_fraction: Of the center crop (`evaluation_view`); None for random views.
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
        atomic_write(path, _with_checksum({"format": FORMAT, **dataclasses.asdict(self)}))


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


EMBEDDINGS, CHECKSUMS, MANIFEST = "embeddings.npy", "checksums.npy", "manifest.json"
LOCK = ".lock"
_HEADER_SIZE = 128  # of checksums.npy
OTHER_FOLDER = (
    "name another folder (--teacher-cache of training and distill cache, --cache of a measurement)"
)
ELSEWHERE = (
    "keep them elsewhere: set $DISTILL_CACHE to a folder (or, for a teacher's, name one with "
    "--teacher-cache, or keep none with --teacher-view student)"
)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one sentence with the remedy.

    Raises:
        DistillError: Instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise DistillError(
            f"{folder} cannot hold embeddings: {error.strerror or error}; {ELSEWHERE}"
        ) from error


@contextmanager
def locked(folder: Path, *, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Keep other processes from writing to the folder, which is made; wait for one that does.

    The operating system opens the lock when its holder dies.

    Args:
        folder: Of the cache.
        on_wait: Told once, in a sentence, when another process holds the lock.

    Raises:
        DistillError: The folder cannot be made or written to.
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


@contextmanager
def remedied(folder: Path) -> Iterator[None]:
    """Add to what is said about a damaged cache what can be done about it."""
    try:
        yield
    except DistillError as error:
        raise DistillError(
            f"{error}; remove the folder {folder} and its embeddings are made again"
        ) from None


def require_space(folder: Path, num_bytes: int) -> None:
    """Refuse what is larger than the space that is free.

    Raises:
        DistillError: Naming the need, what is free, and the remedy.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise DistillError(
            f"{folder} cannot hold embeddings: they need {num_bytes / 2**30:.1f} GiB "
            f"and {free / 2**30:.1f} GiB are free; {ELSEWHERE}"
        )


def require_unused(folder: Path) -> None:
    """Refuse a folder for a new cache that holds more than an interrupted start of one.

    Raises:
        DistillError: It holds something else, or rows that were written.
    """
    ours = {EMBEDDINGS, CHECKSUMS, MANIFEST, LOCK}
    foreign = {path.name.removesuffix(".partial") for path in folder.iterdir()} - ours
    if foreign:
        raise DistillError(
            f"{folder} holds {min(foreign)}, which belongs to no embedding cache; " + OTHER_FOLDER
        )
    checksums = folder / CHECKSUMS
    if checksums.exists() and any(checksums.read_bytes()[_HEADER_SIZE:]):
        raise DistillError(
            f"{folder / MANIFEST} is missing; put it back, or remove the folder {folder} and its "
            "embeddings are made again"
        )


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
            require_space(folder, file_size(store.dtype, contents.shape))
            create(folder / EMBEDDINGS, store.dtype, contents.shape)
            create(folder / CHECKSUMS, _CHECKSUM, (store.num_shards,))
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
                require_exact(folder / EMBEDDINGS, store.dtype, store.contents.shape)
                require_exact(folder / CHECKSUMS, _CHECKSUM, (store.num_shards,))
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
        return len(header(self.dtype, self.contents.shape))

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
            stored: (rows, D) as `distill.embeddings.store.encode` returns them.

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
        return np.frombuffer(content[len(header(_CHECKSUM, shape)) :], _CHECKSUM)

    def _offset(self, row: int) -> int:
        return self.first_byte + row * self.contents.shape[1] * self.dtype.itemsize

    def _mark(self, shard: int, checksum: int) -> None:
        start = len(header(_CHECKSUM, (self.num_shards,)))
        self._write(CHECKSUMS, start + 8 * shard, checksum.to_bytes(8, "little"))

    def _write(self, name: str, offset: int, content: bytes) -> None:
        with (self.folder / name).open("r+b", buffering=0) as file:
            file.seek(offset)
            view = memoryview(content)
            while view:  # one call writes at most 2 GiB
                view = view[file.write(view) :]
            os.fsync(file.fileno())
