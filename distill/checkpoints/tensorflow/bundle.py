"""A TensorFlow checkpoint: an index of variables and the files that hold their bytes.

Both TF1 (`model.ckpt-37535.index`) and TF2 object checkpoints are such bundles; they differ in how
variables are named. The index maps every name to dtype, shape, file, offset, size and a masked
CRC-32C of the bytes, which is checked at every read. Variables are read one at a time, so that a
checkpoint of gigabytes costs the memory of its largest variable. Deliberate limits: strings and
partitioned variables are not read, and big-endian files are refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill.checkpoints.tensor_file import TensorFile
from distill.checkpoints.tensorflow.table import masked_crc32c, read_table
from distill.checkpoints.tensorflow.wire import MalformedError, read_fields
from distill.errors import DistillError

MAX_INDEX_BYTES = 256 * 2**20
_STRING = 7
_DTYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    5: torch.int16,
    6: torch.int8,
    9: torch.int64,
    10: torch.bool,
    14: torch.bfloat16,
    19: torch.float16,
}


class Entry(NamedTuple):
    """Where a variable lies."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    is_partitioned: bool


class Bundle(TensorFile):
    """An open TensorFlow checkpoint.

    Args:
        prefix: What its files' names have in common: `prefix.index`, `prefix.data-00000-of-00001`.
        path: As the person named it; None: `prefix`.

    Raises:
        DistillError: A file is missing, cut short, damaged, compressed or big-endian.
    """

    def __init__(self, prefix: Path, path: Path | None = None) -> None:
        self.prefix = prefix
        try:
            table = read_table(_read_index(self.index_path))
            self.num_shards = _num_shards(table.pop(b"", b""))
            found = {key.decode(): _entry(value) for key, value in table.items()}
        except (MalformedError, UnicodeDecodeError) as error:
            raise DistillError(
                f"{self.index_path} is not a whole index of a TensorFlow checkpoint ({error}); "
                "fetch the file again"
            ) from error
        # The only strings are descriptions of Python objects.
        self.entries = {name: entry for name, entry in found.items() if entry.dtype != _STRING}
        shapes = {name: entry.shape for name, entry in self.entries.items()}
        super().__init__(path or prefix, "tensorflow", shapes)
        self._require_whole()

    @property
    def index_path(self) -> Path:
        """The file of the index."""
        return self.prefix.with_name(self.prefix.name + ".index")

    def data_path(self, shard: int) -> Path:
        """The file that holds the bytes of some variables."""
        return self.prefix.with_name(
            f"{self.prefix.name}.data-{shard:05d}-of-{self.num_shards:05d}"
        )

    def read(self, name: str) -> Tensor:
        """Read a variable and check its bytes.

        Raises:
            DistillError: They are damaged or of a kind that is not read.
        """
        entry = self.entries[name]
        self._require_plain(name, entry)
        file = self.data_path(entry.shard)
        if entry.size == 0:
            return torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
        try:
            mapped = np.memmap(file, np.uint8, "r", offset=entry.offset, shape=(entry.size,))
            content = np.array(mapped)  # checked and used from memory that nobody else changes
        except (OSError, ValueError) as error:
            raise DistillError(f"{file} cannot be read ({error}); fetch it again") from error
        if masked_crc32c(content) != entry.crc:
            raise DistillError(
                f"the checksum of {name} in {file} is wrong: the file is damaged; fetch it again"
            )
        return torch.from_numpy(content).view(_DTYPES[entry.dtype]).reshape(entry.shape)

    def _require_plain(self, name: str, entry: Entry) -> None:
        if entry.is_partitioned:
            raise DistillError(
                f"{name} in {self.path} is partitioned, which is not read; save the checkpoint "
                "without partitions"
            )
        if entry.dtype not in _DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES.values())
            raise DistillError(
                f"{name} in {self.path} has TensorFlow's dtype number {entry.dtype}; {known} are "
                "read"
            )
        if entry.size != math.prod(entry.shape) * _DTYPES[entry.dtype].itemsize:
            raise DistillError(
                f"{name} in {self.path} has {entry.size} bytes, which shape {entry.shape} does "
                "not have; the index is damaged, fetch it again"
            )

    def _require_whole(self) -> None:
        """Refuse data files that are missing or shorter than the index says."""
        ends = dict.fromkeys(range(self.num_shards), 0)
        for name, entry in self.entries.items():
            if entry.shard not in ends:
                raise DistillError(
                    f"{self.index_path} places {name} in file {entry.shard} of {self.num_shards}; "
                    "the index is damaged, fetch it again"
                )
            ends[entry.shard] = max(ends[entry.shard], entry.offset + entry.size)
        for shard, end in ends.items():
            file = self.data_path(shard)
            if not file.is_file():
                raise DistillError(
                    f"{file} is missing beside {self.index_path.name}; a TensorFlow checkpoint "
                    "consists of both, put them into one folder"
                )
            if file.stat().st_size < end:
                raise DistillError(
                    f"{file} has {file.stat().st_size:,} bytes and its index asks for {end:,}: it "
                    "was cut short, fetch it again"
                )


def _read_index(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_INDEX_BYTES:
            raise DistillError(f"{path} has {size:,} bytes, no index of a checkpoint is that large")
        return path.read_bytes()
    except OSError as error:
        raise DistillError(f"{path} cannot be read: {error.strerror}") from error


def _num_shards(header: bytes) -> int:
    """Return the number of data files from the header; refuse big-endian ones."""
    fields = dict(read_fields(header))
    number = fields.get(1, 0)
    if fields.get(2, 0) != 0:
        raise MalformedError("it is big-endian, only little-endian files are read")
    if not isinstance(number, int) or not 1 <= number <= 99_999:
        raise MalformedError("its header is missing or wrong")
    return number


def _entry(value: bytes) -> Entry:
    fields: dict[int, int | bytes] = dict(read_fields(value))
    numbers = {key: field for key, field in fields.items() if isinstance(field, int)}
    shape = fields.get(2, b"")
    if not isinstance(shape, bytes) or not set(fields) - {2, 7} <= set(numbers):
        raise MalformedError("an entry is of another kind")
    return Entry(
        dtype=numbers.get(1, 0),
        shape=_shape(shape),
        shard=numbers.get(3, 0),
        offset=numbers.get(4, 0),
        size=numbers.get(5, 0),
        crc=numbers.get(6, 0),
        is_partitioned=7 in fields,
    )


def _shape(message: bytes) -> tuple[int, ...]:
    sizes = []
    for number, dimension in read_fields(message):
        if number == 2 and isinstance(dimension, bytes):
            size = dict(read_fields(dimension)).get(1, 0)
            sizes.append(size if isinstance(size, int) else -1)
    if any(not 0 <= size < 2**40 for size in sizes):
        raise MalformedError("an entry has an impossible shape")
    return tuple(sizes)
