"""TensorFlow checkpoints (bundles): an index of variables, and data files with their bytes.

TF1 (`model.ckpt-37535.index`) and TF2 object checkpoints differ only in the names of variables. The
index is a sorted table in LevelDB's format, whose values are Protocol Buffer messages: dtype,
shape, file, offset, size and a masked CRC-32C of every variable's bytes, which is checked at every
read. Variables are read one at a time, so that the largest one decides the memory needed.

Sources: the encoding guide of Protocol Buffers; the table format of LevelDB. Limits: strings,
partitioned variables, compressed tables (which TensorFlow does not write here), big-endian files
and groups (wire types 3 and 4) are refused; the index, some hundred kilobytes, is read at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
import torch
from torch import Tensor

from distill.errors import DistillError
from distill.models.checkpoints.tensor_file import TensorFile

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
_PART = re.compile(r"\.(index|data-\d{5}-of-\d{5}|meta)$")
_NEWEST = re.compile(r'^model_checkpoint_path:\s*"([^"]*)"', re.MULTILINE)
_EXPORTED = "variables/variables"  # the same weights in a SavedModel, under other names

# The table
MAGIC = 0xDB4775248B80FB57
FOOTER_SIZE = 48  # two handles of at most 20 bytes, then the magic number
_TRAILER_SIZE = 5  # compression type and checksum of a block
_MASK_DELTA = 0xA282EAD8
_COMPRESSIONS = {1: "Snappy", 2: "zlib", 4: "LZ4", 7: "Zstandard"}

# Protocol Buffers
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10


class MalformedError(ValueError):
    """Bytes that violate the format."""


class Entry(NamedTuple):
    """The index entry of a variable."""

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
        prefix: The common part of its file names, `prefix.index`, `prefix.data-00000-of-00001`.
        path: As given by the user; None: `prefix`.

    Raises:
        DistillError: A file is missing, truncated, damaged, compressed or big-endian.
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
        """The index file."""
        return self.prefix.with_name(self.prefix.name + ".index")

    def data_path(self, shard: int) -> Path:
        """The data file of a shard."""
        return self.prefix.with_name(
            f"{self.prefix.name}.data-{shard:05d}-of-{self.num_shards:05d}"
        )

    def read(self, name: str) -> Tensor:
        """Read a variable; `DistillError` if it is damaged or not supported."""
        entry = self.entries[name]
        self._require_plain(name, entry)
        file = self.data_path(entry.shard)
        if entry.size == 0:
            return torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
        try:
            mapped = np.memmap(file, np.uint8, "r", offset=entry.offset, shape=(entry.size,))
            content = np.array(mapped)  # a copy that nobody else can change
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
                f"{name} in {self.path} is partitioned, which is not supported; save the "
                "checkpoint without partitions"
            )
        if entry.dtype not in _DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES.values())
            raise DistillError(
                f"{name} in {self.path} has TensorFlow's dtype number {entry.dtype}; {known} are "
                "supported"
            )
        if entry.size != math.prod(entry.shape) * _DTYPES[entry.dtype].itemsize:
            raise DistillError(
                f"{name} in {self.path} has {entry.size} bytes, which does not match its shape "
                f"{entry.shape}; the index is damaged, fetch it again"
            )

    def _require_whole(self) -> None:
        """Refuse missing data files, and those shorter than the index says."""
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
                    "needs both in one folder"
                )
            if file.stat().st_size < end:
                raise DistillError(
                    f"{file} has {file.stat().st_size:,} bytes and its index needs {end:,}: it "
                    "is truncated, fetch it again"
                )


def bundle_prefix(path: Path) -> Path | None:
    """Return the prefix of the checkpoint at `path`; None if there is none.

    Args:
        path: `model.ckpt-37535`, a file of it, or a folder with one checkpoint at any depth; with
            several, TensorFlow's file `checkpoint` beside them names one.

    Raises:
        DistillError: A folder with several checkpoints, none of them named.
    """
    if not path.is_dir():
        prefix = path.with_name(_PART.sub("", path.name))
        return prefix if prefix.with_name(prefix.name + ".index").is_file() else None
    found = sorted(
        file.with_name(file.name.removesuffix(".index"))
        for file in path.rglob("*.index")
        if _EXPORTED not in file.as_posix()
    )
    if len(found) <= 1:
        return found[0] if found else None
    for parent in sorted({prefix.parent for prefix in found}):
        named = _newest(parent / "checkpoint")
        if named is not None and parent / named in found:
            return parent / named
    names = ", ".join(str(prefix.relative_to(path)) for prefix in found)
    raise DistillError(f"{path} holds several checkpoints ({names}); name one of them")


def is_bundle_file(name: str) -> bool:
    """Return whether a file of an archive belongs to a checkpoint, except exported copies."""
    if _EXPORTED in name:
        return False
    return Path(name).name == "checkpoint" or bool(re.search(r"\.(index|data-[\d]{5}-of)", name))


def _newest(file: Path) -> str | None:
    """Return the checkpoint named by TensorFlow's file `checkpoint`."""
    try:
        match = _NEWEST.search(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return Path(match[1]).name if match else None


def _read_index(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_INDEX_BYTES:
            raise DistillError(
                f"{path} has {size:,} bytes, which is too large for an index; use another file"
            )
        return path.read_bytes()
    except OSError as error:
        raise DistillError(f"{path} cannot be read: {error.strerror}") from error


def _num_shards(header: bytes) -> int:
    """Return the number of data files from the header."""
    fields = dict(read_fields(header))
    number = fields.get(1, 0)
    if fields.get(2, 0) != 0:
        raise MalformedError("it is big-endian, only little-endian files are supported")
    if not isinstance(number, int) or not 1 <= number <= 99_999:
        raise MalformedError("its header is missing or wrong")
    return number


def _entry(value: bytes) -> Entry:
    fields: dict[int, int | bytes] = dict(read_fields(value))
    numbers = {key: field for key, field in fields.items() if isinstance(field, int)}
    shape = fields.get(2, b"")
    if not isinstance(shape, bytes) or not set(fields) - {2, 7} <= set(numbers):
        raise MalformedError("an entry has fields of a wrong type")
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


def masked_crc32c(data: bytes | np.ndarray) -> int:
    """Return the CRC-32C as stored in tables and bundles, rotated and shifted."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def read_table(data: bytes) -> dict[bytes, bytes]:
    """Return the sorted entries; `MalformedError` if truncated, damaged or compressed."""
    footer = data[-FOOTER_SIZE:]
    if len(footer) < FOOTER_SIZE or int.from_bytes(footer[-8:], "little") != MAGIC:
        raise MalformedError("it does not end as the index of a TensorFlow checkpoint does")
    _, position = _read_handle(footer, 0)  # the metaindex block, always empty
    index, _ = _read_handle(footer, position)
    entries: dict[bytes, bytes] = {}
    for handle in _read_block(data, index).values():
        for key, value in _read_block(data, _read_handle(handle, 0)[0]).items():
            if entries and key <= next(reversed(entries)):
                raise MalformedError("its keys are out of order")
            entries[key] = value
    return entries


def _read_handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """Return (offset, size) of a block, and the end of the handle."""
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return (offset, size), position


def _read_block(data: bytes, handle: tuple[int, int]) -> dict[bytes, bytes]:
    offset, size = handle
    block = data[offset : offset + size + _TRAILER_SIZE]
    if len(block) != size + _TRAILER_SIZE:
        raise MalformedError("a block lies beyond its end")
    content, kind, stored = block[:size], block[size], block[size + 1 :]
    if masked_crc32c(block[: size + 1]) != int.from_bytes(stored, "little"):
        raise MalformedError("the checksum of a block is wrong")
    if kind != 0:
        name = _COMPRESSIONS.get(kind, f"method {kind}")
        raise MalformedError(f"it is compressed ({name}), which TensorFlow does not write here")
    return _read_entries(content)


def _read_entries(content: bytes) -> dict[bytes, bytes]:
    num_restarts = int.from_bytes(content[-4:], "little")
    end = len(content) - 4 * (num_restarts + 1)
    if end < 0:
        raise MalformedError("a block is too short")
    entries: dict[bytes, bytes] = {}
    key, position = b"", 0
    while position < end:
        shared, position = read_varint(content, position)
        own, position = read_varint(content, position)
        value_size, position = read_varint(content, position)
        if shared > len(key) or position + own + value_size > end:
            raise MalformedError("an entry goes beyond its block")
        key = key[:shared] + content[position : position + own]
        position += own
        entries[key] = content[position : position + value_size]
        position += value_size
    return entries


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the unsigned integer at `position` and its end; `MalformedError` if it has none."""
    value = 0
    for count, byte in enumerate(data[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value & (2**64 - 1), position + count + 1
    raise MalformedError("a number has no end")


def read_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a message; `MalformedError` if it is not valid."""
    position = 0
    while position < len(message):
        tag, position = read_varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = read_varint(message, position)
            yield number, value
            continue
        if wire_type == _BYTES:
            size, position = read_varint(message, position)
        elif wire_type in _FIXED_SIZES:
            size = _FIXED_SIZES[wire_type]
        else:
            raise MalformedError(f"a field has the unknown wire type {wire_type}")
        content = message[position : position + size]
        if len(content) != size:
            raise MalformedError("a field is cut short")
        position += size
        yield number, content if wire_type == _BYTES else int.from_bytes(content, "little")
