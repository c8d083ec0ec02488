"""Hashes that stand for a set of images, so that what was computed from it is known again.

A set of files is read in part only: all paths and sizes, and the content of up to 2,000 evenly
spaced files. A change of other files that keeps their sizes is not seen. Labels do not count.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import numpy as np
from PIL import Image

from distill.errors import BadImageError

MAX_READ = 2000


def files_fingerprint(root: str, relative_path: Callable[[int], str], num_files: int) -> str:
    """Return the SHA-256 of files by path, size and partly content, in hexadecimal.

    Args:
        root: The folder.
        relative_path: Gives the path of file i below it.
        num_files: How many there are.
    """
    digest = hashlib.sha256(b"files\n")
    for i in range(num_files):
        path = relative_path(i)
        digest.update(os.fsencode(path) + b"\0" + _size(os.path.join(root, path)) + b"\n")
    for i in evenly_spaced(num_files):
        digest.update(_content(os.path.join(root, relative_path(i))))
    return digest.hexdigest()


def pixels_fingerprint(pixels: np.ndarray) -> str:
    """Return the SHA-256 of an array of pixels and its shape, in hexadecimal."""
    digest = hashlib.sha256(f"pixels {pixels.dtype.str} {pixels.shape}\n".encode())
    for image in pixels:  # a part at a time: the array may not be contiguous
        digest.update(image.tobytes())
    return digest.hexdigest()


def decoded_fingerprint(name: str, load: Callable[[int], Image.Image], num_images: int) -> str:
    """Return the SHA-256 of a set's name, its length and up to 2,000 of its images.

    Args:
        name: Of the set.
        load: Decodes image i.
        num_images: How many there are.
    """
    digest = hashlib.sha256(f"images {name} {num_images}\n".encode())
    for i in evenly_spaced(num_images):
        try:
            image = load(i)
            digest.update(f"{image.size}\n".encode() + image.tobytes())
        except BadImageError:
            digest.update(b"cannot be read\n")
    return digest.hexdigest()


def evenly_spaced(number: int, most: int | None = None) -> list[int]:
    """Return the first `number` places, or `most` (None: 2,000) of them at equal distances."""
    most = MAX_READ if most is None else most
    if number <= most:
        return list(range(number))
    return np.linspace(0, number - 1, most).round().astype(np.int64).tolist()


def _size(path: str) -> bytes:
    try:
        return str(os.stat(path).st_size).encode()
    except OSError:  # loading the image reports it
        return b"missing"


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).digest()
    except OSError:
        return b"missing"
