"""Images of a person's own dataset: any torch `Dataset` of (image, label) or of images alone.

An image is a PIL image, or a uint8 tensor (3, H, W), (1, H, W) or (H, W). A label is an integer, a
class name, or None (-1) for no label; either all items have one or none has. The dataset returns
its images as they are: the toolkit makes the student's random views itself and the teacher's view
is deterministic, so a dataset whose items change from one read to the next is refused. That is
tried on 16 evenly spaced items.

Opening reads every item once, for its label and for a hash of all decoded pixels and labels, the
set's fingerprint; the same object is not read again while it lives. With a `data_key` the person
vouches for the content and nothing is hashed; labels then come from the dataset's `targets` where
these agree with the 16 items, and no item but these is read.

Limits: a dataset neither grows nor changes while it is used. Worker processes inherit or unpickle
it, see `distill.data.workers`; a file that cannot be shared by processes is best opened at the
first read.

Shapes: N images, H x W pixels.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from distill.data.images import Images, as_rgb, bad_image_errors, evenly_spaced
from distill.data.workers import guarded_batches, worker_settings
from distill.errors import BadImageError, DistillError
from distill.terminal import progress_bar

Label = int | str | None

NUM_TRIED = 16
_CHUNK = 64  # items that a worker reads at a time
_FEW = 512  # starting workers takes longer than reading as many
_MAX_CLASSES = 1_000_000


class ObjectImages(Images):
    """The images of a dataset that a person has made.

    Args:
        dataset: Has a length and items as described above; its `classes`, a list of names, is used
            where there is one.
        name: See `Images`.
        data_key: Stands for the content in the fingerprint; None: a hash of all decoded pixels.
        classes: The only classes there may be, for validation images those of training; None:
            those that the labels have.
        num_workers: Processes that read the items when it is opened; None: as many as load images
            later, and none for a small set.

    Raises:
        DistillError: Items cannot be read by number, there are none, they change, raise or are no
            image, or labels that are not understood.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        name: str,
        data_key: str | None = None,
        classes: Sequence[str] | None = None,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(name, None, None)
        self.dataset = dataset
        self._length = _length(dataset, name)
        tried = [self._try_item(i) for i in evenly_spaced(len(self), NUM_TRIED)]
        self.sizes = {item.size for item in tried}  # (width, height) in pixels, of some
        labels = None if data_key is None else _trusted_targets(dataset, tried)
        if labels is None:
            digest, labels = _remembered_content(self, tried, num_workers)
        key = digest if data_key is None else f"key {data_key} {len(self)}".encode()
        self._fingerprint = hashlib.sha256(b"object\n" + key).hexdigest()
        self.labels, self.classes = _numbered(labels, dataset, classes, name)

    def __len__(self) -> int:
        return self._length

    def load(self, i: int) -> Image.Image:
        """Return image `i`; see `Images.load`."""
        return self.read(i)[0]

    def read(self, i: int) -> tuple[Image.Image, Label]:
        """Return the image in RGB and the label of item `i`.

        Raises:
            BadImageError: The item raises, or is not as `distill.data.objects` describes.
        """
        with bad_image_errors(self.describe(i)):
            image, label = _image_and_label(self.dataset[i])
            return _as_image(image), _as_label(label)

    def fingerprint(self) -> str:
        """Return the hash of `data_key`, or of all decoded pixels and labels, in hexadecimal."""
        return self._fingerprint

    def _try_item(self, i: int) -> _Item:
        first, second = _read_item(self, i), _read_item(self, i)
        for item in (first, second):
            if isinstance(item, str):
                raise DistillError(item)
        if first != second:
            raise DistillError(
                f"{self.describe(i)} is not the same when it is read twice; remove random "
                "transforms from the dataset: the toolkit makes the student's random views "
                "itself, and the teacher's view is deterministic"
            )
        assert isinstance(first, _Item)
        return first


def class_path(thing: object) -> str:
    """Return where the class of an object is defined.

    >>> import torchvision
    >>> class_path(torchvision.datasets.FakeData())
    'torchvision.datasets.fakedata.FakeData'
    """
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _length(dataset: Any, name: str) -> int:
    """Return the number of items, at least 1, that can be read by number."""
    indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not indexed or isinstance(dataset, (IterableDataset, str, dict)):
        raise DistillError(
            f"{name} is of type {class_path(dataset)}, whose items cannot be read by number; give "
            "a torch Dataset with __len__ and __getitem__: of a DataLoader its .dataset, in place "
            "of an IterableDataset a list of its items or tar shards"
        )
    try:
        length = len(dataset)
    except TypeError as error:
        raise DistillError(
            f"{name} has no length ({error}); give a dataset whose __len__ returns its number of "
            "items"
        ) from error
    if length == 0:
        raise DistillError(f"{name} has no items; give a dataset that has some")
    return length


class _Item(NamedTuple):
    """What is kept of an item that was read."""

    number: int
    size: tuple[int, int]
    digest: bytes
    label: Label


class _ItemError(ValueError):
    """An item is not as it must be; the message names the remedy."""


def _image_and_label(item: Any) -> tuple[Any, Any]:
    if not isinstance(item, (tuple, list)):
        return item, None
    if len(item) not in (1, 2):
        raise _ItemError(
            f"the item has {len(item)} parts; return (image, label), or the image alone"
        )
    return item[0], item[1] if len(item) == 2 else None


def _as_image(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return as_rgb(image)
    if not isinstance(image, Tensor):
        raise _ItemError(
            f"it is of type {class_path(image)}; return a PIL image or a uint8 tensor (3, H, W)"
        )
    if image.dtype != torch.uint8:
        raise _ItemError(
            f"it is a tensor of {str(image.dtype).removeprefix('torch.')}; return a uint8 tensor "
            "or a PIL image, without normalization: every network normalizes for itself"
        )
    pixels = image.unsqueeze(0) if image.ndim == 2 else image
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or pixels.numel() == 0:
        raise _ItemError(
            f"it is a tensor of shape {tuple(image.shape)}; return (3, H, W), (1, H, W) or "
            "(H, W), of an array (H, W, 3) its permute(2, 0, 1)"
        )
    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy())


def _as_label(label: Any) -> Label:
    if isinstance(label, (Tensor, np.ndarray)) and label.ndim == 0:
        label = label.item()
    if label is None or isinstance(label, str):
        return label
    if isinstance(label, (int, np.integer)) and -1 <= label < _MAX_CLASSES:
        return None if label == -1 else int(label)
    raise _ItemError(
        f"its label is {str(label)[:80]!r} of type {type(label).__name__}; return an integer from "
        f"0 to {_MAX_CLASSES - 1:,}, a class name, or None"
    )


def _read_item(images: ObjectImages, i: int) -> _Item | str:
    """Read one item; return the sentence for a person where that fails."""
    try:
        image, label = images.read(i)
    except BadImageError as error:
        if isinstance(error.__cause__, _ItemError):
            return str(error)
        return f"{error}; correct the dataset, or leave the item out (torch.utils.data.Subset)"
    return _Item(i, image.size, hashlib.sha256(image.tobytes()).digest(), label)


def _trusted_targets(dataset: Any, tried: Sequence[_Item]) -> Sequence[Label] | None:
    """Return `dataset.targets` where these are labels and agree with the tried items."""
    targets = getattr(dataset, "targets", None)
    if not isinstance(targets, (list, tuple, np.ndarray, Tensor)) or len(targets) != len(dataset):
        return None
    try:
        labels = [_as_label(target) for target in targets]
    except _ItemError:
        return None
    return labels if all(labels[item.number] == item.label for item in tried) else None


class _Items(Dataset):
    """Every item of a set, as `_read_item` returns it."""

    def __init__(self, images: ObjectImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> _Item | str:
        return _read_item(self.images, i)


def _read_content(images: ObjectImages, num_workers: int | None) -> tuple[bytes, list[Label]]:
    """Read every item; return a hash of all pixels and labels, and the labels."""
    if num_workers is None and len(images) <= _FEW:
        num_workers = 0
    settings = worker_settings(images, num_workers)
    loader = DataLoader(_Items(images), batch_size=_CHUNK, collate_fn=list, **settings)
    digest = hashlib.sha256()
    labels: list[Label] = []
    with progress_bar(len(images), description=f"reading {images.name}", delay=1.0) as bar:
        for items in guarded_batches(lambda: loader):
            for item in items:
                if isinstance(item, str):
                    raise DistillError(item)
                digest.update(f"{item.size} {item.label!r}\n".encode() + item.digest)
                labels.append(item.label)
            bar.update(len(items))
    return digest.digest(), labels


# What was read of objects that still live, by id.
_Content = tuple[bytes, list[Label]]
_CONTENTS: dict[int, tuple[weakref.ref, Sequence[_Item], _Content]] = {}


def _remembered_content(
    images: ObjectImages, tried: Sequence[_Item], num_workers: int | None
) -> _Content:
    """Return what `_read_content` does, read anew only where the object is another than before."""
    place = id(images.dataset)
    if place in _CONTENTS:
        reference, items, content = _CONTENTS[place]
        if reference() is images.dataset and items == tried:
            return content
    content = _read_content(images, num_workers)
    try:
        reference = weakref.ref(images.dataset, lambda _: _CONTENTS.pop(place, None))
    except TypeError:  # a list, for example
        return content
    _CONTENTS[place] = (reference, tried, content)
    return content


def _numbered(
    labels: Sequence[Label], dataset: Any, allowed: Sequence[str] | None, name: str
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Return labels int64 (N,) and class names; both None where no item has a label."""
    words = [label for label in labels if isinstance(label, str)]
    numbers = [label for label in labels if isinstance(label, int)]
    if not words and not numbers:
        return None, None
    if words and numbers:
        raise DistillError(f"{name} has class names and numbers as labels; use one of both")
    missing = len(labels) - len(words) - len(numbers)
    if missing:
        raise DistillError(
            f"{name}: {missing:,} of {len(labels):,} items have no label; give every item one, or "
            "none"
        )
    classes = _class_names(words, numbers, dataset) if allowed is None else tuple(allowed)
    if words:
        number_of = {word: number for number, word in enumerate(classes)}
        numbers = [number_of.get(word, len(classes)) for word in words]
    wrong = next((i for i, number in enumerate(numbers) if number >= len(classes)), None)
    if wrong is not None:
        raise DistillError(
            f"{name}[{wrong}] is of class {labels[wrong]!r}, and training has {len(classes)} "
            "classes; validation images are of the classes of training"
        )
    return np.array(numbers, np.int64), classes


def _class_names(words: Sequence[str], numbers: Sequence[int], dataset: Any) -> tuple[str, ...]:
    """Return the dataset's own class names where they cover its labels, else make some."""
    own = getattr(dataset, "classes", None)
    if not isinstance(own, (list, tuple)) or not all(isinstance(one, str) for one in own):
        own = ()
    if words:
        return tuple(own) if set(words) <= set(own) else tuple(sorted(set(words)))
    num_classes = 1 + max(numbers)
    return tuple(own) if num_classes <= len(own) else tuple(map(str, range(num_classes)))
