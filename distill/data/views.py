"""Datasets of views and the loaders of batches that training and evaluation iterate over.

A training view depends on (seed, epoch, index) alone: not on the number of workers, on the order or
on any generator's state, so a resumed or differently parallel run sees the very same pictures. One
loader lasts for a whole run and prefetches across epoch boundaries: workers start once. An image
that cannot be read never raises in a worker; its name comes back in `Batch.bad`. Deliberate limits:
views must draw from torch's generator only (torchvision's do); every rank reads the images it needs
by itself.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill import distributed
from distill.data.batch import BadItem, Batch, Item, collate
from distill.data.epochs import NO_IMAGE, EpochSampler
from distill.data.images import Images
from distill.data.transforms import View
from distill.errors import BadImageError

_MAX_WORKERS = 8
_SMALL_SET = 10_000


class TrainingViews(Dataset):
    """Random views of a set of images.

    An item's key is (epoch, index); its views are drawn with torch's generator seeded from (seed,
    epoch, index), whose state is put back afterwards. A further view has its number in the seed,
    too, so that it does not depend on what else is drawn.

    Args:
        images: the images.
        indices: which of them to train on.
        view: makes the view.
        second_view: makes the second one, if there is to be one.
        distortion: draws the distortions float32 (2, P) of both views, if there are to be any, see
            `distill.data.distortions`.
        further_views: make more views of the network that is trained, numbered from 1.
        seed: of the views and of the order of `training_loader`; at least 0.
    """

    def __init__(
        self,
        images: Images,
        indices: np.ndarray,
        view: View,
        second_view: View | None = None,
        *,
        distortion: Callable[[], Tensor] | None = None,
        further_views: Sequence[View] = (),
        seed: int,
    ) -> None:
        self.images = images
        self.indices = np.asarray(indices, dtype=np.int64)
        self.further_views = further_views
        self.view = view
        self.second_view = second_view
        self.distortion = distortion
        self.seed = seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> Item | BadItem:
        with _drawing_from(_view_seed(self.seed, *key)):
            views = (self.view, self.second_view, self.distortion)
            return _make_item(self.images, key, *views, further=self._further)

    def _further(self, image: Image, key: tuple[int, int]) -> tuple[Tensor, ...]:
        views = []
        for number, view in enumerate(self.further_views, start=1):
            with _drawing_from(_view_seed(self.seed, *key, number)):
                views.append(view(image))
        return tuple(views)


class EvaluationViews(Dataset):
    """One view of each image, in order.

    Args:
        images: the images.
        indices: which of them, in which order; None for all.
        view: makes the view.
        draw: (seed, number) of a random view, which then depends on both and on the image; None
            for a view without randomness.
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
        everything = np.arange(len(images)) if indices is None else indices
        self.indices = np.asarray(everything, dtype=np.int64)
        self.view = view
        self.draw = draw

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Item | BadItem:
        key = (0, int(self.indices[position]))
        if self.draw is None:
            return _make_item(self.images, key, self.view)
        # Not the crop that training draws of this image in some epoch: unlike it, "teacher".
        with _drawing_from(_view_seed("teacher", *self.draw, key[1])):
            return _make_item(self.images, key, self.view)


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
        views: the training views; their seed decides the order, too.
        batch_size: images in a batch, all ranks together.
        num_epochs: epochs in the whole run; `Batch.epoch` tells where one ends.
        start_epoch: epoch of the first batch.
        start_batch: the first batch within that epoch; the one after the epoch's last is allowed.
        num_workers: loader processes; None for `default_num_workers`.
        drop_last: leave out an epoch's last batch when it is smaller.
        pin_memory: for copies to a GPU; `Batch.bad` is then a list.
        shard: (rank, world size); every rank gets its part of each batch.

    Returns:
        A loader of `Batch`; torch's global generator is not drawn from.

    Raises:
        DistillError: no batch in an epoch, or a start beyond the epoch's batches.
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
            num_further_views=len(views.further_views),
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

    Args:
        images: the images.
        view: makes the view, see `evaluation_view`.
        indices: which images, in which order; None for all.
        batch_size: images in a batch; the last may be smaller.
        num_workers: loader processes; None for `default_num_workers`.
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


def default_num_workers(images: Images) -> int:
    """Return how many loader processes suit the images: none for a small set held in memory.

    Otherwise one for each core this process may use, at most eight; ranks share out the cores.
    """
    if images.in_memory and len(images) <= _SMALL_SET:
        return 0
    return min(_MAX_WORKERS, max(1, num_usable_cores() // distributed.num_local_ranks()))


def num_usable_cores() -> int:
    """Return the cores this process may run on, which a container or scheduler may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_settings(images: Images, num_workers: int | None) -> dict[str, Any]:
    """Return the DataLoader arguments that all loaders share."""
    return {
        "num_workers": default_num_workers(images) if num_workers is None else num_workers,
        "worker_init_fn": _start_worker,
        # A loader draws a seed for its workers when iteration starts: not from the global
        # generator, whose state the run saves and restores.
        "generator": torch.Generator(),
    }


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)  # the workers are the parallelism
    # A terminal and a cluster's queue send these to every process of a job: the parent, which ends
    # its loaders when it is done with them, is the one to finish a step and to keep a checkpoint.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _make_item(
    images: Images,
    key: tuple[int, int],
    view: View,
    second_view: View | None = None,
    distortion: Callable[[], Tensor] | None = None,
    *,
    further: Callable[[Image, tuple[int, int]], tuple[Tensor, ...]] | None = None,
) -> Item | BadItem:
    epoch, index = key
    if index == NO_IMAGE:
        return BadItem(None, epoch)
    try:
        image = images.load(index)
    except BadImageError:
        return BadItem(images.describe(index), epoch)
    return Item(  # what is drawn first does not depend on whether more is drawn
        view=view(image),
        second_view=None if second_view is None else second_view(image),
        label=-1 if images.labels is None else int(images.labels[index]),
        index=index,
        epoch=epoch,
        distortion=None if distortion is None else distortion(),
        further_views=() if further is None else further(image, key),
    )


def _view_seed(*parts: int | str) -> int:
    """Hash numbers that say which view it is, so that neighbouring ones start unrelated streams."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """Let torch's generator draw from a seed, and put its state back afterwards."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it also queues work for accelerators, 130 us for each image.
        torch.default_generator.manual_seed(seed)
        yield
