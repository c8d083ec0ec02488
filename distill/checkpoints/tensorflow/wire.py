"""Protocol buffer messages, as far as the index of a TensorFlow checkpoint needs them.

Source: the encoding guide of Protocol Buffers. A message is a sequence of fields: a varint that
holds number and wire type, then a value. Deliberate limits: groups (wire types 3 and 4) are
refused, and nothing is known about message types: the caller names fields by number.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10


class MalformedError(ValueError):
    """Bytes that are not what they must be; the message says in what."""


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the unsigned integer that starts at `position`, and where it ends.

    Raises:
        MalformedError: It is cut short or longer than 64 bits.
    """
    value = 0
    for count, byte in enumerate(data[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value & (2**64 - 1), position + count + 1
    raise MalformedError("a number has no end")


def read_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) in the order of the message; numbers are unsigned.

    Raises:
        MalformedError: The message is cut short or not one.
    """
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
