"""Datasets of views, batches of them, and the loaders that training and evaluation iterate over.

A training view depends on (seed, epoch, index) alone: not on the number of workers, on the order or
on any generator's state, so a resumed or differently parallel run sees the very same pictures. One
loader lasts for a whole run and prefetches across epoch boundaries: workers start once. An image
that cannot be read never raises in a worker; its name comes back in `Batch.bad`. Deliberate limits:
views must draw from torch's generator only (torchvision's do); every rank reads the images it needs
by itself.

Shapes: B batch, S and T side in pixels of the student's and the teacher's view.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.data.epochs import NO_IMAGE, EpochSampler
from distill.data.images import Images
from distill.data.transforms import View
from distill.errors import BadImageError

_MAX_WORKERS = 8
_SMALL_SET = 10_000


class Batch(NamedTuple):
    """B views with what is known about them; rows of all tensors belong together.

    Attributes:
        student: uint8 (B, 3, S, S). In evaluation, the one view there is.
        teacher: uint8 (B, 3, T, T); None when the teacher is looked up by index or shares the
            student's view.
        label: int64 (B,), -1 without labels.
        index: int64 (B,), positions in the full `Images`, whatever subset is iterated over.
        epoch: the epoch the batch belongs to, 0 in evaluation.
        bad: descriptions of the images that could not be read and are in none of the tensors. With
            no image left, B is 0 and the views are (0, 3, 0, 0).
    """

    student: Tensor
    teacher: Tensor | None
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    epoch: int
    bad: Sequence[str]


@dataclass(frozen=True)
class _Item:
    student: Tensor
    teacher: Tensor | None
    label: int
    index: int
    epoch: int


@dataclass(frozen=True)
class _BadItem:
    description: str | None  # None where there was no image to read
    epoch: int


class TrainingViews(Dataset):
    """Random views of a set of images.

    An item's key is (epoch, index); its views are drawn with torch's generator seeded from (seed,
    epoch, index), whose state is put back afterwards.

    Args:
        images: the images.
        indices: which of them to train on.
        student_view: makes the student's view.
        teacher_view: makes the teacher's, if it is to have one of its own.
        seed: of the views and of the order of `training_loader`; at least 0.
    """

    def __init__(
        self,
        images: Images,
        indices: np.ndarray,
        student_view: View,
        teacher_view: View | None = None,
        *,
        seed: int,
    ) -> None:
        self.images = images
        self.indices = np.asarray(indices, dtype=np.int64)
        self.student_view = student_view
        self.teacher_view = teacher_view
        self.seed = seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> _Item | _BadItem:
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it also queues work for accelerators, 130 us for each image.
            torch.default_generator.manual_seed(_view_seed(self.seed, epoch, index))
            return _make_item(self.images, key, self.student_view, self.teacher_view)


class EvaluationViews(Dataset):
    """One view of each image, in order.

    Args:
        images: the images.
        indices: which of them, in which order; None for all.
        view: makes the view.
    """

    def __init__(self, images: Images, indices: np.ndarray | None, view: View) -> None:
        self.images = images
        everything = np.arange(len(images)) if indices is None else indices
        self.indices = np.asarray(everything, dtype=np.int64)
        self.view = view

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> _Item | _BadItem:
        return _make_item(self.images, (0, int(self.indices[position])), self.view, None)


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
) -> DataLoader:
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
        collate_fn=partial(_collate, has_teacher=views.teacher_view is not None),
        pin_memory=pin_memory,
        **_worker_settings(views.images, num_workers),
    )


def evaluation_loader(
    images: Images,
    view: View,
    *,
    indices: np.ndarray | None = None,
    batch_size: int,
    num_workers: int | None = None,
) -> DataLoader:
    """Return a loader over images in order, each once.

    Args:
        images: the images.
        view: makes the view, see `evaluation_view`.
        indices: which images, in which order; None for all.
        batch_size: images in a batch; the last may be smaller.
        num_workers: loader processes; None for `default_num_workers`.

    Returns:
        A loader of `Batch`, the views in `Batch.student`.
    """
    return DataLoader(
        EvaluationViews(images, indices, view),
        batch_size=batch_size,
        collate_fn=partial(_collate, has_teacher=False),
        **_worker_settings(images, num_workers),
    )


def default_num_workers(images: Images) -> int:
    """Return how many loader processes suit the images: none for a small set held in memory.

    Otherwise one for each core this process may use, at most eight.
    """
    if images.in_memory and len(images) <= _SMALL_SET:
        return 0
    return min(_MAX_WORKERS, num_usable_cores())


def num_usable_cores() -> int:
    """Return the cores this process may run on, which a container or scheduler may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _worker_settings(images: Images, num_workers: int | None) -> dict[str, Any]:
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends them, without traces


def _make_item(
    images: Images, key: tuple[int, int], student_view: View, teacher_view: View | None
) -> _Item | _BadItem:
    epoch, index = key
    if index == NO_IMAGE:
        return _BadItem(None, epoch)
    try:
        image = images.load(index)
    except BadImageError:
        return _BadItem(images.describe(index), epoch)
    student = student_view(image)  # first: a random teacher view must not change the student's
    teacher = None if teacher_view is None else teacher_view(image)
    label = -1 if images.labels is None else int(images.labels[index])
    return _Item(student, teacher, label, index, epoch)


def _collate(items: Sequence[_Item | _BadItem], *, has_teacher: bool) -> Batch:
    good = [item for item in items if isinstance(item, _Item)]
    teachers = [item.teacher for item in good if item.teacher is not None]
    return Batch(
        student=_stack([item.student for item in good]),
        teacher=_stack(teachers) if has_teacher else None,
        label=torch.tensor([item.label for item in good], dtype=torch.int64),
        index=torch.tensor([item.index for item in good], dtype=torch.int64),
        epoch=items[0].epoch,
        bad=tuple(
            item.description for item in items if isinstance(item, _BadItem) and item.description
        ),
    )


def _stack(views: Sequence[Tensor]) -> Tensor:
    if not views:
        return torch.empty((0, 3, 0, 0), dtype=torch.uint8)
    # Not torch.stack: it starts its threads once per view, and where other programs keep the cores
    # busy that took 2 s for 256 views of 128 pixels instead of milliseconds.
    batch = torch.empty((len(views), *views[0].shape), dtype=views[0].dtype)
    np.stack([view.numpy() for view in views], out=batch.numpy())
    return batch


def _view_seed(seed: int, epoch: int, index: int) -> int:
    """Hash the three numbers, so that neighbouring ones start unrelated streams."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
