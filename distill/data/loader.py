"""Batches of views for training and evaluation, in an order that is known beforehand.

A training view depends on (seed, epoch, image) alone: not on the number of workers, on the order or
on any generator's state. The order of the images depends on (seed, epoch) alone. So a resumed or
differently parallel run sees the very same batches, and a run on several ranks those of a run on
one. One loader lasts for a whole run and prefetches across epoch boundaries: workers start once. An
image that cannot be read never raises in a worker; its name comes back in `Batch.bad`.

Limits: views must draw from torch's generator only (torchvision's do); shuffling is global and
needs random access to the images; every rank reads the images it needs by itself.

Shapes: B batch, S and T side in pixels of the view and the second view, P parameters of one view's
distortion (`distill.data.distortions`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from distill.data.images import Images
from distill.data.views import View
from distill.data.workers import worker_settings
from distill.errors import BadImageError, DistillError

NO_IMAGE = -1


class Batch(NamedTuple):
    """B views with what is known about them; rows of all tensors belong together.

    Attributes:
        view: uint8 (B, 3, S, S), the view of the network that is trained. In evaluation, the one
            view there is.
        second_view: uint8 (B, 3, T, T), in pre-training the second view; None when there is one
            view.
        label: int64 (B,), -1 without labels.
        index: int64 (B,), positions in the full `Images`, whatever subset is iterated over.
        epoch: The epoch the batch belongs to, 0 in evaluation.
        bad: Descriptions of the images that could not be read and are in none of the tensors. With
            no image left, B is 0, the views are (0, 3, 0, 0) and the distortion (0, 2, 0).
        distortion: float32 (B, 2, P), parameters of the distortions of the two views; None without.
        further_views: uint8 (B, 3, S, S) each, further crops for the network that is trained.
    """

    view: Tensor
    second_view: Tensor | None
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    epoch: int
    bad: Sequence[str]
    distortion: Tensor | None = None
    further_views: Sequence[Tensor] = ()

    def split(self, num_parts: int) -> list[Batch]:
        """Cut the rows into contiguous parts, to accumulate gradients over them.

        Args:
            num_parts: How many, at least 1; empty ones are left out.

        Returns:
            At most `num_parts` batches that share this one's memory; their sizes differ by at most
            one. `bad` goes with the first alone. A batch without rows comes back as its one part.
        """
        ends = [part * len(self.index) // num_parts for part in range(num_parts + 1)]
        rows = [slice(*pair) for pair in pairwise(ends) if pair[0] < pair[1]]
        parts = [self._part(chosen) for chosen in rows] or [self]
        return [parts[0], *(part._replace(bad=()) for part in parts[1:])]

    def _part(self, rows: slice) -> Batch:
        return self._replace(
            view=self.view[rows],
            second_view=None if self.second_view is None else self.second_view[rows],
            label=self.label[rows],
            index=self.index[rows],
            distortion=None if self.distortion is None else self.distortion[rows],
            further_views=tuple(view[rows] for view in self.further_views),
        )


@dataclass(frozen=True)
class Item:
    """The views of one image: one row of a `Batch`."""

    view: Tensor
    second_view: Tensor | None
    label: int
    index: int
    epoch: int
    distortion: Tensor | None = None
    further_views: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class BadItem:
    """An image that could not be read; its description is None where there was no image to read."""

    description: str | None
    epoch: int


def collate(
    items: Sequence[Item | BadItem],
    *,
    has_second_view: bool = False,
    has_distortion: bool = False,
    num_further_views: int = 0,
) -> Batch:
    """Put items of one epoch together, at least one: the good ones in order, the bad ones by name.

    Args:
        items: All good ones have what the following arguments say.
        has_second_view: Whether there is a second view.
        has_distortion: Whether there is a distortion.
        num_further_views: How many further views there are.
    """
    good = [item for item in items if isinstance(item, Item)]
    seconds = [item.second_view for item in good if item.second_view is not None]
    distortions = [item.distortion for item in good if item.distortion is not None]
    no_views = torch.empty((0, 3, 0, 0), dtype=torch.uint8)
    return Batch(
        view=_stack([item.view for item in good], no_views),
        second_view=_stack(seconds, no_views) if has_second_view else None,
        label=torch.tensor([item.label for item in good], dtype=torch.int64),
        index=torch.tensor([item.index for item in good], dtype=torch.int64),
        epoch=items[0].epoch,
        bad=tuple(
            item.description for item in items if isinstance(item, BadItem) and item.description
        ),
        distortion=_stack(distortions, torch.empty((0, 2, 0))) if has_distortion else None,
        further_views=tuple(
            _stack([item.further_views[number] for item in good], no_views)
            for number in range(num_further_views)
        ),
    )


def _stack(rows: Sequence[Tensor], nothing: Tensor) -> Tensor:
    if not rows:
        return nothing
    # Not torch.stack: it starts its threads once per view, and where other programs keep the cores
    # busy that took 2 s for 256 views of 128 pixels instead of milliseconds.
    batch = torch.empty((len(rows), *rows[0].shape), dtype=rows[0].dtype)
    np.stack([row.numpy() for row in rows], out=batch.numpy())
    return batch


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """The batches of a whole run: every epoch a new order of all indices, cut into batches.

    The order depends on (seed, epoch) alone. A batch is a list of (epoch, index); a rank without
    any image of a batch gets [(epoch, -1)], which loads as a batch with B = 0.

    >>> sampler = EpochSampler(np.arange(5), batch_size=2, num_epochs=2, seed=0)
    >>> [len(batch) for batch in sampler], len(sampler)
    ([2, 2, 1, 2, 2, 1], 6)

    Args:
        indices: int64 (n,), the images to go through.
        batch_size: Images in a batch, all ranks together; at least 1.
        num_epochs: The epoch to stop before.
        seed: At least 0.
        start: (epoch, batch) of the first batch.
        drop_last: Leave out an epoch's last batch when it is smaller.
        shard: (rank, world size); each rank gets its contiguous part of every batch.

    Raises:
        DistillError: No batch in an epoch, or a start beyond the epoch's batches.
    """

    def __init__(
        self,
        indices: np.ndarray,
        *,
        batch_size: int,
        num_epochs: int,
        seed: int,
        start: tuple[int, int] = (0, 0),
        drop_last: bool = False,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.indices = indices
        self.batch_size = batch_size
        self.num_epochs = num_epochs
        self.seed = seed
        self.start_epoch, self.start_batch = start
        self.rank, self.world_size = shard
        self.num_batches = num_batches(len(indices), batch_size, drop_last=drop_last)
        if not 0 <= self.start_batch <= self.num_batches:
            raise DistillError(
                f"cannot start at batch {self.start_batch}: an epoch has {self.num_batches}; "
                "resume with the data and batch size that the run began with"
            )

    def __len__(self) -> int:
        num_left = (self.num_epochs - self.start_epoch) * self.num_batches - self.start_batch
        return max(0, num_left)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = self.start_batch
        for epoch in range(self.start_epoch, self.num_epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(self.indices)
            for batch in range(first, self.num_batches):
                rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                mine = np.array_split(rows, self.world_size)[self.rank]
                yield [(epoch, int(index)) for index in mine] or [(epoch, NO_IMAGE)]
            first = 0


def num_batches(num_images: int, batch_size: int, *, drop_last: bool) -> int:
    """Return how many batches an epoch has.

    Raises:
        DistillError: None at all.
    """
    if batch_size < 1:
        raise DistillError(f"the batch size is {batch_size}; it must be at least 1")
    if num_images == 0:
        raise DistillError("there is no image to train on")
    if drop_last and num_images < batch_size:
        raise DistillError(
            f"{num_images} images do not fill one batch of {batch_size}: lower --batch-size to "
            f"{num_images} or less"
        )
    return num_images // batch_size if drop_last else -(-num_images // batch_size)


class TrainingViews(Dataset):
    """Random views of a set of images.

    An item's key is (epoch, index); its views are drawn with torch's generator seeded from (seed,
    epoch, index), whose state is put back afterwards. A further crop has its number in the seed,
    too, so that it does not depend on what else is drawn.

    >>> from distill.data.sources import open_images
    >>> from distill.data.views import training_view
    >>> digits = open_images("digits").train
    >>> views = TrainingViews(digits, np.arange(100), training_view(32, "crop"), seed=0)
    >>> torch.equal(views[3, 17].view, views[3, 17].view)
    True

    Args:
        images: The images.
        indices: int64 (n,), which of them to train on.
        view: Makes the view.
        second_view: Makes the second one, if there is to be one.
        distortion: Draws the distortions float32 (2, P) of both views, if there are to be any, see
            `distill.data.distortions`.
        num_crops: How many times `view` is drawn; from 2 on there are further views.
        seed: Of the views and of the order of `training_loader`; at least 0.
    """

    def __init__(
        self,
        images: Images,
        indices: np.ndarray,
        view: View,
        second_view: View | None = None,
        *,
        distortion: Callable[[], Tensor] | None = None,
        num_crops: int = 1,
        seed: int,
    ) -> None:
        self.images = images
        self.indices = np.asarray(indices, dtype=np.int64)
        self.view = view
        self.second_view = second_view
        self.distortion = distortion
        self.num_crops = num_crops
        self.seed = seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> Item | BadItem:
        with _drawing_from(self.seed, *key):
            image = _load(self.images, key)
            if isinstance(image, BadItem):
                return image
            # In this order: what is drawn first does not depend on whether more is drawn.
            view = self.view(image)
            second_view = None if self.second_view is None else self.second_view(image)
            distortion = None if self.distortion is None else self.distortion()
        further_views = []
        for number in range(1, self.num_crops):
            with _drawing_from(self.seed, *key, number):
                further_views.append(self.view(image))
        epoch, index = key
        label = _label(self.images, index)
        return Item(view, second_view, label, index, epoch, distortion, tuple(further_views))


class EvaluationViews(Dataset):
    """One view of each image, in order.

    Args:
        images: The images.
        indices: Which of them, in which order; None for all.
        view: Makes the view.
        draw: (seed, number) of a random view, such as a corruption, which then depends on both and
            on the image; None for a view without randomness.
    """

    def __init__(
        self,
        images: Images,
        indices: np.ndarray | None,
        view: View,
        *,
        draw: tuple[int, int] | None = None,
    ) -> None:
        self.images = images
        chosen = np.arange(len(images)) if indices is None else indices
        self.indices = np.asarray(chosen, dtype=np.int64)
        self.view = view
        self.draw = draw

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Item | BadItem:
        index = int(self.indices[position])
        image = _load(self.images, (0, index))
        if isinstance(image, BadItem):
            return image
        if self.draw is None:
            view = self.view(image)
        else:
            # Other numbers than those that training draws of this image, hence "teacher".
            with _drawing_from("teacher", *self.draw, index):
                view = self.view(image)
        return Item(view, None, _label(self.images, index), index, epoch=0)


def training_loader(
    views: TrainingViews,
    *,
    batch_size: int,
    num_epochs: int,
    start_epoch: int = 0,
    start_batch: int = 0,
    num_workers: int | None = None,
    drop_last: bool = False,
    pin_memory: bool = False,
    shard: tuple[int, int] = (0, 1),
) -> DataLoader[Batch]:
    """Return a loader over all batches from a position in a run to the run's end.

    Args:
        views: The training views; their seed decides the order, too.
        batch_size: Images in a batch, all ranks together.
        num_epochs: Epochs in the whole run; `Batch.epoch` tells where one ends.
        start_epoch: Epoch of the first batch.
        start_batch: The first batch within that epoch; the one after the epoch's last is allowed.
        num_workers: Worker processes; None for `distill.data.workers.default_num_workers`.
        drop_last: Leave out an epoch's last batch when it is smaller.
        pin_memory: For copies to a GPU; `Batch.bad` is then a list.
        shard: (rank, world size); every rank gets its part of each batch.

    Returns:
        A loader of `Batch`; torch's global generator is not drawn from.

    Raises:
        DistillError: No batch in an epoch, or a start beyond the epoch's batches.
    """
    batches = EpochSampler(
        views.indices,
        batch_size=batch_size,
        num_epochs=num_epochs,
        seed=views.seed,
        start=(start_epoch, start_batch),
        drop_last=drop_last,
        shard=shard,
    )
    return DataLoader(
        views,
        batch_sampler=batches,
        collate_fn=partial(
            collate,
            has_second_view=views.second_view is not None,
            has_distortion=views.distortion is not None,
            num_further_views=views.num_crops - 1,
        ),
        pin_memory=pin_memory,
        **worker_settings(views.images, num_workers),
    )


def evaluation_loader(
    images: Images,
    view: View,
    *,
    indices: np.ndarray | None = None,
    batch_size: int,
    num_workers: int | None = None,
    draw: tuple[int, int] | None = None,
) -> DataLoader[Batch]:
    """Return a loader over images in order, each once.

    >>> from distill.data.sources import open_images
    >>> from distill.data.views import evaluation_view
    >>> digits = open_images("digits").val
    >>> batches = evaluation_loader(digits, evaluation_view(32), batch_size=100)
    >>> [tuple(batch.view.shape) for batch in batches][-1]
    (60, 3, 32, 32)

    Args:
        images: The images.
        view: Makes the view, see `distill.data.views.evaluation_view`.
        indices: Which images, in which order; None for all.
        batch_size: Images in a batch; the last may be smaller.
        num_workers: Worker processes; None for `distill.data.workers.default_num_workers`.
        draw: (seed, number) of a random view, see `EvaluationViews`.

    Returns:
        A loader of `Batch`, the views in `Batch.view`.
    """
    return DataLoader(
        EvaluationViews(images, indices, view, draw=draw),
        batch_size=batch_size,
        collate_fn=collate,
        **worker_settings(images, num_workers),
    )


def _load(images: Images, key: tuple[int, int]) -> Image.Image | BadItem:
    epoch, index = key
    if index == NO_IMAGE:
        return BadItem(None, epoch)
    try:
        return images.load(index)
    except BadImageError:
        return BadItem(images.describe(index), epoch)


def _label(images: Images, index: int) -> int:
    return -1 if images.labels is None else int(images.labels[index])


@contextmanager
def _drawing_from(*parts: int | str) -> Iterator[None]:
    """Seed torch's generator with a hash of `parts`, and put its state back afterwards.

    By the hash views with neighboring numbers start unrelated streams.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it also queues work for accelerators, 130 us for each image.
        torch.default_generator.manual_seed(int.from_bytes(digest, "little"))
        yield
