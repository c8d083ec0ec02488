"""The sorted table that indexes a TensorFlow checkpoint: keys and values in checked blocks.

The format is that of LevelDB's tables: data blocks, an index block that says where they are, and a
footer that says where the index is. Keys within a block share prefixes with their predecessor.
Every block is followed by its compression type and a masked CRC-32C of both. Deliberate limits:
the whole table is read (an index has some hundred kilobytes), and compressed blocks, which
TensorFlow does not write here, are refused.
"""

from __future__ import annotations

import google_crc32c
import numpy as np

from distill.checkpoints.tensorflow.wire import MalformedError, read_varint

MAGIC = 0xDB4775248B80FB57
FOOTER_SIZE = 48  # two handles of at most 20 bytes, then the magic number
_TRAILER_SIZE = 5
_MASK_DELTA = 0xA282EAD8
_COMPRESSIONS = {1: "Snappy", 2: "zlib", 4: "LZ4", 7: "Zstandard"}


def masked_crc32c(data: bytes | np.ndarray) -> int:
    """Return the CRC-32C as tables and bundles store it, rotated and shifted."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def read_table(data: bytes) -> dict[bytes, bytes]:
    """Return the entries of a table in the order of their keys.

    Raises:
        MalformedError: The table is cut short, damaged or compressed.
    """
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
    """Return (offset, size) of a block, and where the handle ends."""
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
