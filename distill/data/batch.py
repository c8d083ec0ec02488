"""Batches of views and how they are put together; the loaders are in `distill.data.views`.

Deliberate limit: views of one number have one size.

Shapes: B batch, S and T side in pixels of the view and the second view, R of a further view, P
parameters of one view's distortion (`distill.data.distortions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """B views with what is known about them; rows of all tensors belong together.

    Attributes:
        view: uint8 (B, 3, S, S), the view of the network that is trained. In evaluation, the one
            view there is.
        second_view: uint8 (B, 3, T, T), in distillation the teacher's own view, in pre-training the
            second view; None when there is one view.
        label: int64 (B,), -1 without labels.
        index: int64 (B,), positions in the full `Images`, whatever subset is iterated over.
        epoch: the epoch the batch belongs to, 0 in evaluation.
        bad: descriptions of the images that could not be read and are in none of the tensors. With
            no image left, B is 0, the views are (0, 3, 0, 0) and the distortion (0, 2, 0).
        distortion: float32 (B, 2, P), parameters of the distortions of the two views, see
            `distill.data.distortions`; None without.
        further_views: uint8 (B, 3, R, R) each, more views of the network that is trained, in the
            order of their numbers; R may differ between them.
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
            num_parts: how many, at least 1; empty ones are left out.

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
    """The views of one image, see `Batch`.

    Attributes:
        view: uint8 (3, S, S).
        second_view: uint8 (3, T, T) or None.
        label: -1 without labels.
        index: position in the full `Images`.
        epoch: see `Batch`.
        distortion: float32 (2, P) or None.
        further_views: uint8 (3, R, R) each.
    """

    view: Tensor
    second_view: Tensor | None
    label: int
    index: int
    epoch: int
    distortion: Tensor | None = None
    further_views: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class BadItem:
    """An image that could not be read.

    Attributes:
        description: what to call it; None where there was no image to read.
        epoch: see `Batch`.
    """

    description: str | None
    epoch: int


def collate(
    items: Sequence[Item | BadItem],
    *,
    has_second_view: bool = False,
    has_distortion: bool = False,
    num_further_views: int = 0,
) -> Batch:
    """Put items of one epoch together, at least one.

    Args:
        items: the items; all good ones have what the flags say.
        has_second_view: whether they have a second view.
        has_distortion: whether they have a distortion.
        num_further_views: how many further views they have.

    Returns:
        The batch of the good items, in order, with the names of the bad ones.
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
