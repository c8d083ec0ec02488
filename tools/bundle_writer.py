"""Write TensorFlow checkpoints without TensorFlow, in the format that the toolkit reads.

For tests and for `write_checkpoint.py`. Variables are written one at a time, so that a checkpoint
of gigabytes needs the memory of its largest variable.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from distill.models.checkpoints.tensorflow import MAGIC, masked_crc32c

RESTART_INTERVAL = 16  # keys between two that are written in full
DTYPES = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int16": 5,
    "int8": 6,
    "int64": 9,
    "bool": 10,
    "float16": 19,
}


def write_bundle(
    prefix: Path,
    variables: Iterable[tuple[str, np.ndarray]],
    *,
    num_shards: int = 1,
    keys_per_block: int = 64,
) -> None:
    """Write a checkpoint.

    Args:
        prefix: What its files' names have in common.
        variables: Names and values, in any order.
        num_shards: Data files; variables go to them in turn.
        keys_per_block: Entries of the index in a block.
    """
    entries = {b"": field(1, num_shards) + field(3, field(1, 1))}
    offsets = [0] * num_shards
    files = [
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{num_shards:05d}").open("wb")
        for shard in range(num_shards)
    ]
    for count, (name, value) in enumerate(variables):
        shard, content = count % num_shards, np.asarray(value, order="C")
        flat = content.reshape(-1).view(np.uint8)
        files[shard].write(flat)
        entries[name.encode()] = entry(
            content, shard=shard, offset=offsets[shard], crc=masked_crc32c(flat)
        )
        offsets[shard] += content.nbytes
    for file in files:
        file.close()
    table = write_table(dict(sorted(entries.items())), keys_per_block=keys_per_block)
    prefix.with_name(prefix.name + ".index").write_bytes(table)


def entry(value: np.ndarray, *, shard: int, offset: int, crc: int) -> bytes:
    """Return the index entry of a variable; as in TensorFlow's, what is 0 is left out."""
    shape = b"".join(field(2, field(1, size)) for size in value.shape)
    numbers = ((3, shard), (4, offset), (5, value.nbytes))
    return (
        field(1, DTYPES[value.dtype.name])
        + field(2, shape)
        + b"".join(field(number, n) for number, n in numbers if n)
        + bytes([6 << 3 | 5])
        + crc.to_bytes(4, "little")
    )


def write_table(
    entries: dict[bytes, bytes], *, keys_per_block: int = 64, compression: int = 0
) -> bytes:
    """Return a table; `compression` is what every block claims of itself."""
    table = b""
    index: dict[bytes, bytes] = {}
    names = list(entries)
    for start in range(0, len(names), keys_per_block):
        part = {name: entries[name] for name in names[start : start + keys_per_block]}
        block = _block(part)
        index[list(part)[-1]] = varint(len(table)) + varint(len(block))
        table += _trailed(block, compression)
    handles = b""
    for block in (_block({}), _block(index)):
        handles += varint(len(table)) + varint(len(block))
        table += _trailed(block, compression)
    return table + handles.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")


def field(number: int, value: int | bytes) -> bytes:
    """Return a field of a protocol buffer message."""
    if isinstance(value, int):
        return bytes([number << 3]) + varint(value)
    return bytes([number << 3 | 2]) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """Return an unsigned integer, seven bits a byte."""
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _block(entries: dict[bytes, bytes]) -> bytes:
    block, restarts, previous = b"", [], b""
    for count, (key, value) in enumerate(entries.items()):
        shared = 0
        if count % RESTART_INTERVAL == 0:
            restarts.append(len(block))
        else:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        block += varint(shared) + varint(len(key) - shared) + varint(len(value))
        block += key[shared:] + value
        previous = key
    numbers = [*(restarts or [0]), len(restarts or [0])]
    return block + b"".join(number.to_bytes(4, "little") for number in numbers)


def _trailed(block: bytes, compression: int) -> bytes:
    whole = block + bytes([compression])
    return whole + masked_crc32c(whole).to_bytes(4, "little")
