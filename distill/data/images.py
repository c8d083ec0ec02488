"""Ordered, indexable sets of images: the interface `Images`, image files, arrays in memory.

What every set promises: image `i` is the same picture in every process and every run, it comes as
an 8-bit RGB `PIL.Image`, and one that cannot be read raises `BadImageError` with its name. Image
files and arrays are here, shards in `distill.data.shards`, a person's own datasets in
`distill.data.objects`.

`fingerprint()` is a hash that stands for a set of images, so that what was computed from it is
recognized later. Of a set of files it covers all paths and sizes, and the content of up to 2,000
evenly spaced files: a change of other files that keeps their sizes is not seen. Labels do not
count.

Limits: only the first frame of an animation; EXIF orientation is ignored, as torchvision's
ImageFolder does, so that embeddings agree with published ones; decoding by Pillow only.

Shapes: N images, H x W pixels.
"""

from __future__ import annotations

import errno
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from distill.errors import BadImageError, DistillError

MAX_READ = 2000  # images that a fingerprint reads
# The machine ran out of something: no image is to blame.
_NOT_THE_IMAGE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Images(ABC):
    """An ordered set of N images, with labels or without.

    Attributes:
        name: What to call the set in messages, e.g. "imagenette128/train".
        labels: int64 (N,), each in [0, len(classes)); None when the images carry no labels.
        classes: Class names by label; None without labels.
        in_memory: Whether the pixels are held decoded, so that reading cannot fail.

    Raises:
        DistillError: Another number of labels than of images.
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
        if self.labels is not None and len(self.labels) != len(self):
            raise DistillError(f"{name}: {len(self.labels)} labels for {len(self)} images")

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, i: int) -> Image.Image:
        """Return image `i` in RGB, 8 bits per channel.

        Raises:
            BadImageError: It is missing, truncated, empty, no image, or too large to decode safely.
        """

    def describe(self, i: int) -> str:
        """Return what to call image `i` in a message."""
        return f"{self.name}[{i}]"

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash, in hexadecimal, that stands for the images in their order."""


class FolderImages(Images):
    """Image files below one folder.

    The paths are kept in one block of bytes with offsets rather than as a list: 1.28 million string
    objects would be copied into every loader process as their reference counts are touched.

    Args:
        root: The folder.
        files: N paths relative to `root`, with "/" between their parts.
        labels: N class indices, or None.
        classes: Class names by label, or None.
        name: See `Images`.

    Raises:
        DistillError: Another number of labels than of files.
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
        self.root = os.fspath(root)
        encoded = [os.fsencode(file) for file in files]
        self._paths = b"".join(encoded)
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        super().__init__(name, labels, classes)

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

    def num_bytes(self) -> int:
        """Return the size of all files, without those that are missing."""
        return sum(_file_size(self.path(i)) or 0 for i in range(len(self)))

    def fingerprint(self) -> str:
        """Return the SHA-256, in hexadecimal, of the files by path, size and partly content."""
        digest = hashlib.sha256(b"files\n")
        for i in range(len(self)):
            size = _file_size(self.path(i))
            digest.update(os.fsencode(self.relative_path(i)) + b"\0")
            digest.update(b"missing" if size is None else str(size).encode())
            digest.update(b"\n")
        for i in evenly_spaced(len(self)):
            try:
                digest.update(hashlib.sha256(Path(self.path(i)).read_bytes()).digest())
            except OSError:  # loading the image reports it
                digest.update(b"missing")
        return digest.hexdigest()

    def load(self, i: int) -> Image.Image:
        """Decode image `i`; see `Images.load`."""
        path = self.path(i)
        with bad_image_errors(path), open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise BadImageError("the file is empty")
            with Image.open(file) as image:
                return as_rgb(image)


def _file_size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


class ArrayImages(Images):
    """Images held as one array.

    Args:
        pixels: uint8 (N, H, W, 3) in RGB, or (N, H, W) in gray.
        labels: N class indices, or None.
        classes: Class names by label, or None.
        name: See `Images`.

    Raises:
        DistillError: Another dtype or shape, or another number of labels.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        labels: Sequence[int] | np.ndarray | None = None,
        classes: Sequence[str] | None = None,
        *,
        name: str,
    ) -> None:
        is_gray = pixels.ndim == 3
        if pixels.dtype != np.uint8 or not (is_gray or (pixels.ndim == 4 and pixels.shape[3] == 3)):
            raise DistillError(
                f"{name}: pixels are {pixels.dtype} {pixels.shape}; "
                "they must be uint8 (N, H, W, 3) or (N, H, W)"
            )
        self.pixels = pixels
        super().__init__(name, labels, classes, in_memory=True)

    def __len__(self) -> int:
        return len(self.pixels)

    def fingerprint(self) -> str:
        """Return the SHA-256, in hexadecimal, of the pixels and their shape."""
        digest = hashlib.sha256(f"pixels {self.pixels.dtype.str} {self.pixels.shape}\n".encode())
        for image in self.pixels:  # one at a time: the array may not be contiguous
            digest.update(image.tobytes())
        return digest.hexdigest()

    def load(self, i: int) -> Image.Image:
        """Return image `i`; see `Images.load`."""
        return Image.fromarray(self.pixels[i]).convert("RGB")


def evenly_spaced(number: int, most: int | None = None) -> list[int]:
    """Return the positions 0 to `number` - 1, or `most` (None: 2,000) of them at equal distances.

    >>> evenly_spaced(9, most=3)
    [0, 4, 8]
    """
    most = MAX_READ if most is None else most
    if number <= most:
        return list(range(number))
    return np.linspace(0, number - 1, most).round().astype(np.int64).tolist()


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
def bad_image_errors(description: str) -> Iterator[None]:
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
