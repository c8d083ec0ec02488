"""Files of one array in NumPy's format, made at their full size and exact to the byte.

The header is written and compared here rather than by NumPy, whose padding may change: a file is
right when it starts with the very bytes that were expected and is as long as expected.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np

from distill.errors import DistillError
from distill.files import written_whole

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
    with written_whole(path) as file:
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
