"""Anchors of all images that are trained on: a slot for each, instead of a queue of recent ones.

The teacher is frozen and its embeddings are kept, so nothing about its side has to be waited for:

- one bank: every image is an anchor from the first step, through the teacher's first view (the
  center crop), and nothing is ever enqueued;
- two banks: the student's side is known only once the student has embedded an image. The banks
  start empty, an image gets its slot when it comes by for the first time, and whenever it comes by
  again its student's row is overwritten. From the end of the first epoch on every image is an
  anchor, its student's row at most an epoch old; the teacher's row stays that of the first view.

A bank is spread over W ranks like a queue (`distill.losses.anchors`). A checkpoint holds no row of
the teacher's: they are looked up again.

Shapes: N images, n slots on this rank (N / W, rounded), B rows of the batch of all ranks, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.errors import DistillError
from distill.losses.anchors import (
    NO_IMAGE,
    Anchors,
    Shard,
    check_batch,
    check_sizes,
    copy_shared,
    num_held,
)

_CHUNK = 4096  # rows that are looked up at once
_NO_SLOT = -1


class DatasetAnchors:
    """Banks with one slot per image.

    Args:
        images: Indices of the images, int64 (N,), each once.
        rows: Looks up the teacher's embeddings (B, Dt), on the CPU, of images by index.
        teacher_dim: Dt.
        student_dim: Ds, or None for one bank that both sides read.
        dtype: Of the banks, as of a queue's.
        device: Of the banks.
        shard: (rank, W): which of the slots this process holds.

    Attributes:
        size: N.
        num_real: Slots [:num_real] are real anchors; of all ranks.
        shard: As given.

    Raises:
        DistillError: No image, a width below 1, or an unsupported dtype.
    """

    def __init__(
        self,
        images: np.ndarray,
        rows: Callable[[np.ndarray], Tensor],
        teacher_dim: int,
        student_dim: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        shard: Shard = (0, 1),
    ) -> None:
        check_sizes(len(images), teacher_dim, student_dim, dtype)
        self.size, self.shard, self.num_valid = len(images), shard, 0
        self._rows = rows
        n = num_held(self.size, shard)
        widths = [teacher_dim] if student_dim is None else [teacher_dim, student_dim]
        self._banks = [torch.zeros(n, width, dtype=dtype, device=device) for width in widths]
        self._image_index = torch.full((n,), NO_IMAGE, dtype=torch.int64, device=device)
        # Of all ranks' slots, on every rank.
        self._slot_of = torch.full((int(images.max()) + 1,), _NO_SLOT, dtype=torch.int64)
        if self.one_bank:
            mine = torch.from_numpy(images[shard[0] :: shard[1]])
            self._image_index.copy_(mine)
            self._look_up(torch.arange(n), mine)
            self.num_valid = self.size

    @property
    def is_sharded(self) -> bool:
        """Whether other ranks hold a part of the anchors."""
        return self.shard[1] > 1

    @property
    def one_bank(self) -> bool:
        """Whether teacher and student read the same bank."""
        return len(self._banks) == 1

    def anchors(self) -> Anchors:
        """Return this rank's real slots without copying them; none while it has none."""
        num_valid = num_held(self.num_valid, self.shard)
        banks = [bank[:num_valid] for bank in self._banks]
        return Anchors(banks[0], banks[-1], self._image_index[:num_valid])

    @torch.no_grad()
    def enqueue(
        self, teacher: Tensor, student: Tensor | None = None, image_index: Tensor | None = None
    ) -> None:
        """Overwrite the student's rows of a batch; with one bank, do nothing.

        Every rank is given the same rows and writes its own of them.

        Args:
            teacher: B x Dt; its shape is checked, its rows are those of the first view.
            student: B x Ds, any float dtype; normalized in float32 at least.
            image_index: B, int64, of `images`, each at most once.

        Raises:
            DistillError: A shape does not fit; nothing is written then.
        """
        if self.one_bank:
            return
        if image_index is None:
            raise DistillError("every row needs the index of its image, whose slot it takes")
        check_batch([teacher, student], image_index, self._banks)
        assert student is not None
        index = image_index.cpu()
        slots = self._slots(index)
        rank, num_ranks = self.shard
        mine = (slots % num_ranks == rank).nonzero().squeeze(1)
        place = slots[mine] // num_ranks
        is_new = self._image_index[place.to(self._image_index.device)].cpu() == NO_IMAGE
        self._look_up(place[is_new], index[mine[is_new]])
        bank = self._banks[1]
        place, mine = place.to(bank.device), mine.to(bank.device)
        wide = student.to(bank.device)[mine].to(torch.promote_types(torch.float32, bank.dtype))
        bank[place] = F.normalize(wide).to(bank.dtype)
        self._image_index[place] = image_index.to(bank.device)[mine]

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's part of what cannot be looked up; with one bank, nothing."""
        if self.one_bank:
            return {}
        return {
            "student": self._banks[1],
            "image_index": self._image_index,
            "num_valid": self.num_valid,
        }

    def load_state_dict(self, *shards: dict[str, Any]) -> None:
        """Restore the student's rows and the slots, and look the teacher's rows up again.

        Args:
            *shards: What `state_dict` returned on every rank of the bank that was saved, in the
                order of the ranks, whose number need not be this bank's.

        Raises:
            DistillError: A state is of another bank; nothing is restored then.
        """
        if self.one_bank:
            return
        self._check(shards)
        for rank, state in enumerate(shards):
            saved = (rank, len(shards))
            for buffer, rows in (
                (self._banks[1], state["student"]),
                (self._image_index, state["image_index"]),
            ):
                copy_shared(buffer, rows, shard=self.shard, saved_shard=saved)
            held = num_held(state["num_valid"], saved)
            self._slot_of[state["image_index"][:held]] = torch.arange(held) * len(shards) + rank
        self.num_valid = shards[0]["num_valid"]
        held = num_held(self.num_valid, self.shard)
        self._look_up(torch.arange(held), self._image_index[:held].cpu())

    def _slots(self, index: Tensor) -> Tensor:
        """Return the slots of images on the CPU, giving the next free ones to new images."""
        new = index[self._slot_of[index] == _NO_SLOT]
        self._slot_of[new] = torch.arange(self.num_valid, self.num_valid + len(new))
        self.num_valid += len(new)
        return self._slot_of[index]

    def _look_up(self, place: Tensor, index: Tensor) -> None:
        """Write the teacher's rows of images into this rank's places; both on the CPU."""
        bank = self._banks[0]
        for places, images in zip(place.split(_CHUNK), index.split(_CHUNK), strict=True):
            rows = self._rows(images.numpy()).to(bank.device)
            wide = rows.to(torch.promote_types(torch.float32, bank.dtype))
            bank[places.to(bank.device)] = F.normalize(wide).to(bank.dtype)

    def _check(self, shards: Sequence[dict[str, Any]]) -> None:
        own = self.state_dict()
        for rank, state in enumerate(shards):
            n, bank = num_held(self.size, (rank, len(shards))), self._banks[1]
            shape = (n, bank.shape[1])
            if state.keys() != own.keys() or (state["student"].shape, state["student"].dtype) != (
                shape,
                bank.dtype,
            ):
                raise DistillError(
                    f"the saved anchors are not those of {self.size} images with rows of width "
                    f"{bank.shape[1]} in {bank.dtype}; go on with the same images, student and "
                    "--queue-dtype"
                )

    def __repr__(self) -> str:
        widths = " and ".join(str(bank.shape[1]) for bank in self._banks)
        return f"DatasetAnchors({self.size} images x {widths}, {self.num_valid} real)"
