"""Images in tar shards, as WebDataset writes them.

Files of a sample share the part of their name before the first dot of its last part, and follow
each other: `a/0001.jpg`, `a/0001.cls`. The first image of a sample is taken; `.cls` holds its class
as a number. Image i is a shard, an offset and a size, the same in every process and every run, so
that order, views, embeddings, distribution over ranks and resuming are those of any other set.

Deliberate limit: images are read one at a time, each with a request of its own where they lie in an
object store; `filecache::` before the address fetches whole shards instead.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from distill.data.fingerprint import evenly_spaced
from distill.data.folders import EXTENSIONS
from distill.data.images import Images, as_rgb, blaming
from distill.data.shards import Members, ShardFiles, is_local, members_of
from distill.errors import BadImageError, DistillError
from distill.terminal import progress_bar

_MAX_LABEL_BYTES = 20
_MAX_CLASSES = 1_000_000
_READ_LOCALLY, _READ_REMOTELY = 2000, 50  # images, for the fingerprint


class TarImages(Images):
    """Images of tar shards, in their order.

    Args:
        urls: Of the shards, see `distill.data.shards`.
        name: See `Images`.

    Raises:
        DistillError: A shard that cannot be read, no image, or labels of some images alone.
    """

    def __init__(self, urls: Sequence[str], *, name: str) -> None:
        self._files = ShardFiles(urls)
        shard, offset, size, keys, labels = [], [], [], [], []
        with progress_bar(len(urls), description=f"{name}: finding images") as bar:
            for number, url in enumerate(urls):
                for key, image, label in _samples(members_of(url)):
                    shard.append(number)
                    offset.append(image[0])
                    size.append(image[1])
                    keys.append(key)
                    labels.append(self._label(number, label, url))
                bar.update(1)
        if not shard:
            raise DistillError(f"{name}: no image in {len(urls)} shards, the first is {urls[0]}")
        self._shard = np.array(shard, np.int32)
        self._offset, self._size = np.array(offset, np.int64), np.array(size, np.int64)
        self._keys = np.array(keys)  # one block: not a million objects in every loader process
        classes = _classes(labels, name)
        super().__init__(name, None if classes is None else labels, classes)

    @property
    def is_local(self) -> bool:
        """Whether all shards lie on a disk."""
        return all(map(is_local, self._files.urls))

    @property
    def num_bytes(self) -> int:
        """Size of all images as stored."""
        return int(self._size.sum())

    def __len__(self) -> int:
        return len(self._shard)

    def describe(self, i: int) -> str:
        """Return shard and key of image `i`."""
        return f"{self._files.urls[self._shard[i]]}/{self._keys[i]}"

    def load(self, i: int) -> Image.Image:
        """Decode image `i`; see `Images.load`."""
        with blaming(self.describe(i)):
            content = self._content(i)
            if not content:
                raise BadImageError("the file is empty")
            with Image.open(io.BytesIO(content)) as image:
                return as_rgb(image)

    def fingerprint(self) -> str:
        """Return a hash of names, sizes and places of all images, and the content of some."""
        digest = hashlib.sha256(b"shards\n")
        for array in (self._keys, self._shard, self._offset, self._size):
            digest.update(np.ascontiguousarray(array).tobytes())
        most = _READ_LOCALLY if self.is_local else _READ_REMOTELY
        for i in evenly_spaced(len(self), most):
            digest.update(hashlib.sha256(self._content(i)).digest())
        return digest.hexdigest()

    def _content(self, i: int) -> bytes:
        return self._files.read(int(self._shard[i]), int(self._offset[i]), int(self._size[i]))

    def _label(self, shard: int, place: tuple[int, int] | None, url: str) -> int:
        if place is None:
            return -1
        text = self._files.read(shard, place[0], min(place[1], _MAX_LABEL_BYTES))
        try:
            label = int(text)
        except ValueError:
            label = -1
        if not 0 <= label < _MAX_CLASSES:
            raise DistillError(
                f"{url} has the class {text!r}; a .cls file holds a number from 0 to "
                f"{_MAX_CLASSES - 1:,}"
            )
        return label


Place = tuple[int, int]


def _samples(members: Members) -> list[tuple[str, Place, Place | None]]:
    """Return key, place of the image and place of the class of every sample with an image."""
    found: list[tuple[str, Place, Place | None]] = []
    current, image, label = "", None, None
    for name, offset, size in zip(
        members.names, members.offsets.tolist(), members.sizes.tolist(), strict=True
    ):
        folder, _, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if key != current:
            if image is not None:
                found.append((current, image, label))
            current, image, label = key, None, None
        if image is None and f".{ending}".lower() in EXTENSIONS:
            image = (offset, size)
        elif ending.lower() == "cls":
            label = (offset, size)
    if image is not None:
        found.append((current, image, label))
    return found


def _classes(labels: list[int], name: str) -> list[str] | None:
    """Return class names, numbers as text, or None where no image has a class."""
    without = labels.count(-1)
    if without == len(labels):
        return None
    if without:
        raise DistillError(
            f"{name}: {without:,} of {len(labels):,} images have no .cls beside them; give every "
            "image its class, or none"
        )
    return [str(label) for label in range(max(labels) + 1)]
