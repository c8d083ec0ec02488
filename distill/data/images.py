"""Hashes that stand for a set of images, so that what was computed from it is known again.

A set of files is read in part only: all paths and sizes, and the content of up to 2,000 evenly
spaced files. A change of other files that keeps their sizes is not seen. Labels do not count.

Ordered, indexable sets of images: files in folders, arrays in memory, torchvision datasets.

What every set promises: image `i` is the same picture in every process and every run, it comes as
an 8-bit RGB `PIL.Image`, and one that cannot be read raises `BadImageError` with its name.
Deliberate limits: only the first frame of an animation, EXIF orientation ignored (as torchvision's
ImageFolder does, so that embeddings agree with published ones), decoding by Pillow only.

Shapes: N images, H x W pixels.
"""

from __future__ import annotations

import errno
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from distill.errors import BadImageError, DistillError

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


# The machine ran out of something: no picture is to blame.
_NOT_THE_IMAGE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Images(ABC):
    """An ordered set of N images, with labels or without.

    Attributes:
        name: what to call the set in messages, e.g. "imagenette128/train".
        labels: int64 (N,), each in [0, len(classes)); None when the images carry no labels.
        classes: class names by label; None without labels.
        in_memory: whether the pixels are held decoded, so that reading cannot fail.
    """

    def __init__(
        self,
        name: str,
        labels: Sequence[int] | np.ndarray | None,
        classes: Sequence[str] | None,
        *,
        in_memory: bool = False,
    ) -> None:
        self.name = name
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.classes = None if classes is None else tuple(classes)
        self.in_memory = in_memory

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, i: int) -> Image.Image:
        """Return image `i` in RGB, 8 bits per channel.

        Raises:
            BadImageError: it is missing, truncated, empty, no image, or too large to decode safely.
        """

    def describe(self, i: int) -> str:
        """Return what to call image `i` in a message."""
        return f"{self.name}[{i}]"

    def fingerprint(self) -> str:
        """Return a hash of the images in their order; see `distill.data.images`."""
        return decoded_fingerprint(self.name, self.load, len(self))

    def _require_one_label_each(self) -> None:
        if self.labels is not None and len(self.labels) != len(self):
            raise DistillError(f"{self.name}: {len(self.labels)} labels for {len(self)} images")


class FolderImages(Images):
    """Image files below one folder.

    The paths are kept in one block of bytes with offsets rather than as a list: 1.28 million string
    objects would be copied into every loader process as their reference counts are touched.

    Args:
        root: the folder.
        files: N paths relative to `root`, with "/" between their parts.
        labels: N class indices, or None.
        classes: class names by label, or None.
        name: see `Images`.

    Raises:
        DistillError: as many labels as files are needed.
    """

    def __init__(
        self,
        root: str | Path,
        files: Sequence[str],
        labels: Sequence[int] | np.ndarray | None = None,
        classes: Sequence[str] | None = None,
        *,
        name: str,
    ) -> None:
        super().__init__(name, labels, classes)
        self.root = os.fspath(root)
        encoded = [os.fsencode(file) for file in files]
        self._paths = b"".join(encoded)
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self._require_one_label_each()

    def __len__(self) -> int:
        return len(self._ends)

    def relative_path(self, i: int) -> str:
        """Return the path of image `i` below `root`."""
        position = range(len(self))[i]
        start = self._ends[position - 1] if position else 0
        return os.fsdecode(self._paths[start : self._ends[position]])

    def path(self, i: int) -> str:
        """Return the full path of image `i`."""
        return os.path.join(self.root, self.relative_path(i))

    def describe(self, i: int) -> str:
        """Return the full path of image `i`."""
        return self.path(i)

    def fingerprint(self) -> str:
        """Return a hash of the files; see `distill.data.images`."""
        return files_fingerprint(self.root, self.relative_path, len(self))

    def load(self, i: int) -> Image.Image:
        """Decode image `i`; see `Images.load`."""
        path = self.path(i)
        with blaming(path), open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise BadImageError("the file is empty")
            with Image.open(file) as image:
                return as_rgb(image)


class ArrayImages(Images):
    """Images held as one array.

    Args:
        pixels: uint8 (N, H, W, 3) in RGB, or (N, H, W) in gray.
        labels: N class indices, or None.
        classes: class names by label, or None.
        name: see `Images`.

    Raises:
        DistillError: another dtype or shape, or another number of labels.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        labels: Sequence[int] | np.ndarray | None = None,
        classes: Sequence[str] | None = None,
        *,
        name: str,
    ) -> None:
        super().__init__(name, labels, classes, in_memory=True)
        is_gray = pixels.ndim == 3
        if pixels.dtype != np.uint8 or not (is_gray or (pixels.ndim == 4 and pixels.shape[3] == 3)):
            raise DistillError(
                f"{name}: pixels are {pixels.dtype} {pixels.shape}; "
                "they must be uint8 (N, H, W, 3) or (N, H, W)"
            )
        self.pixels = pixels
        self._require_one_label_each()

    def __len__(self) -> int:
        return len(self.pixels)

    def fingerprint(self) -> str:
        """Return a hash of the pixels."""
        return pixels_fingerprint(self.pixels)

    def load(self, i: int) -> Image.Image:
        """Return image `i`; see `Images.load`."""
        return Image.fromarray(self.pixels[i]).convert("RGB")


class TorchvisionImages(Images):
    """A torchvision classification dataset, its items (PIL image, label).

    Args:
        dataset: has `classes`, and `targets` or `labels`; made without a transform.
        name: see `Images`.

    Raises:
        DistillError: another number of labels than of images.
    """

    def __init__(self, dataset: Any, *, name: str) -> None:
        labels = getattr(dataset, "targets", None)
        if labels is None:
            labels = getattr(dataset, "labels", None)
        decoded = isinstance(getattr(dataset, "data", None), np.ndarray)
        super().__init__(name, labels, getattr(dataset, "classes", None), in_memory=decoded)
        self.dataset = dataset
        self._require_one_label_each()

    def __len__(self) -> int:
        return len(self.dataset)

    def fingerprint(self) -> str:
        """Return a hash of the pixels, where they are held decoded, else as `Images` does."""
        return pixels_fingerprint(self.dataset.data) if self.in_memory else super().fingerprint()

    def load(self, i: int) -> Image.Image:
        """Return image `i`; see `Images.load`."""
        with blaming(self.describe(i)):
            return as_rgb(self.dataset[i][0])


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB; 16-bit gray, which Pillow's own conversion turns white, too.

    Raises:
        BadImageError: 32-bit gray, whose range no file states.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise BadImageError("32 bits per pixel have no fixed range: save it with 8 or 16")
    return image.convert("RGB")


@contextmanager
def blaming(description: str) -> Iterator[None]:
    """Turn whatever decoding raises into a `BadImageError` that names the image."""
    try:
        yield
    except UnidentifiedImageError:
        raise BadImageError(f"cannot read image {description}: not an image") from None
    except MemoryError:
        raise
    # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, ... on broken files.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NOT_THE_IMAGE:
            raise
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise BadImageError(f"cannot read image {description}: {reason}") from error
