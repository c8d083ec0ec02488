"""The anchor queue: embeddings of recent images, first in, first out.

Source: CompRess (Abbasi Koohpayegani et al., NeurIPS 2020). Anchor j of the teacher's bank and
anchor j of the student's come from the same image, so both banks share one pointer. Each anchor
also carries its image's index, by which a row can be kept from its own old embedding.

A queue can be spread over W ranks (`distill.anchors.shards` says how). Pointer and counts are those
of the whole queue, the same on every rank; one process is W = 1 of the same code.

Shapes: B rows of the batch of all ranks, K anchors the queue holds (`size`), n of them on this rank
(K / W, rounded up or down), D width.

Limits: nothing is exchanged here, so every rank is given the whole batch to enqueue; rows that are
not finite are written as they come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.anchors.checks import check_batch, check_sizes, check_states, describe, tensors_of
from distill.anchors.enqueue import write_batch
from distill.anchors.shards import Shard, copy_shared, num_held, write
from distill.errors import UnknownNameError

INITS = ("empty", "random")
NO_IMAGE = -1


@dataclass(frozen=True, eq=False)
class Anchors:
    """This rank's real rows of a queue, as views of its banks: the next `enqueue` changes them.

    Attributes:
        teacher: N x Dt in the queue's dtype, N <= n.
        student: N x Ds; the very object `teacher` when both sides read one bank.
        image_index: N, int64; -1 where an anchor belongs to no image.
    """

    teacher: Tensor
    student: Tensor
    image_index: Tensor

    def __len__(self) -> int:
        return len(self.teacher)


class AnchorQueue:
    """Paired banks of unit rows with one pointer.

    Args:
        size: K, anchors the queue holds.
        teacher_dim: Dt.
        student_dim: Ds, or None for one bank that both sides read.
        dtype: Of the banks; one of `DTYPES`.
        device: Of the banks.
        init: "empty" (no anchor is real before it is enqueued) or "random" (as published: uniform
            in +-sqrt(3 / D), rows of about unit norm, all K of them real from the start).
        seed: Of the random rows; the same rows on every device and for every number of ranks.
        shard: (rank, W): which of the K anchors this process holds.

    Attributes:
        size: K, whatever the number of ranks.
        pointer: Where the next row goes, in [0, K).
        num_real: Anchors [:num_real] are real, the others nothing; of the whole queue.
        shard: As given.

    Raises:
        DistillError: A size or width below 1, or an unsupported dtype or init.
    """

    def __init__(
        self,
        size: int,
        teacher_dim: int,
        student_dim: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        init: str = "empty",
        seed: int = 0,
        shard: Shard = (0, 1),
    ) -> None:
        check_sizes(size, teacher_dim, student_dim, dtype)
        if init not in INITS:
            raise UnknownNameError("queue init", init, INITS)
        assert 0 <= shard[0] < shard[1]
        self.size, self.shard, self.pointer = size, shard, 0
        self.num_real = size if init == "random" else 0
        widths = [teacher_dim] if student_dim is None else [teacher_dim, student_dim]
        n = num_held(size, shard)
        self._banks = [torch.zeros(n, width, dtype=dtype, device=device) for width in widths]
        self._image_index = torch.full((n,), NO_IMAGE, dtype=torch.int64, device=device)
        if init == "random":
            generator = torch.Generator().manual_seed(seed)
            for bank in self._banks:
                self._fill_uniform(bank, generator)

    @property
    def is_sharded(self) -> bool:
        """Whether other ranks hold a part of the anchors."""
        return self.shard[1] > 1

    @property
    def one_bank(self) -> bool:
        """Whether teacher and student read the same bank."""
        return len(self._banks) == 1

    @property
    def num_bytes(self) -> int:
        """Memory of banks and image indices on this rank."""
        return sum(tensor.nbytes for tensor in tensors_of(self.state_dict()))

    @staticmethod
    def required_bytes(
        size: int,
        teacher_dim: int,
        student_dim: int | None,
        dtype: torch.dtype,
        *,
        num_shards: int = 1,
    ) -> int:
        """Return the memory that a queue of these sizes would take on a rank, at most.

        Nothing is allocated. The arguments are those of the queue; `num_shards` is W.

        Raises:
            DistillError: A size or width below 1, or an unsupported dtype.
        """
        check_sizes(size, teacher_dim, student_dim, dtype)
        row = (teacher_dim + (student_dim or 0)) * dtype.itemsize + torch.int64.itemsize
        return num_held(size, (0, num_shards)) * row

    def anchors(self) -> Anchors:
        """Return this rank's real rows without copying them; none while it has none."""
        num_real = num_held(self.num_real, self.shard)
        banks = [bank[:num_real] for bank in self._banks]
        return Anchors(banks[0], banks[-1], self._image_index[:num_real])

    @torch.no_grad()
    def enqueue(self, teacher: Tensor, student: Tensor | None, image_index: Tensor) -> None:
        """Write the L2-normalized rows of a batch at the pointer and move it on by B, wrapping.

        A batch larger than the queue leaves its last K rows. Every rank is given the same rows and
        writes its own of them.

        Args:
            teacher: B x Dt, any float dtype; normalized in float32 at least.
            student: B x Ds; ignored, and may be None, with one bank.
            image_index: B, int64, >= 0.

        Raises:
            DistillError: A shape does not fit; nothing is written then.
        """
        batch: list[Tensor | None] = [teacher] if self.one_bank else [teacher, student]
        check_batch(batch, image_index, self._banks)
        num_skipped = max(0, len(teacher) - self.size)
        write_batch(
            self._banks,
            self._image_index,
            [rows[num_skipped:] for rows in batch if rows is not None],
            image_index[num_skipped:],
            start=(self.pointer + num_skipped) % self.size,
            size=self.size,
            shard=self.shard,
        )
        self.pointer = (self.pointer + len(teacher)) % self.size
        self.num_real = min(self.size, self.num_real + len(teacher))

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's part of what `load_state_dict` restores; tensors are not copied."""
        return {
            "banks": list(self._banks),
            "image_index": self._image_index,
            "pointer": self.pointer,
            "num_real": self.num_real,
        }

    def load_state_dict(self, *shards: dict[str, Any]) -> None:
        """Restore this rank's banks and image indices, pointer and count.

        Args:
            *shards: What `state_dict` returned on every rank of the queue that was saved, in the
                order of the ranks. Their number need not be this queue's; tensors may be mapped
                from files, of which only this rank's rows are read.

        Raises:
            DistillError: An entry is missing, unknown or does not fit; nothing is restored then.
        """
        check_states(shards, self.state_dict(), size=self.size)
        own = tensors_of(self.state_dict())
        for rank, state in enumerate(shards):
            for mine, theirs in zip(own, tensors_of(state), strict=True):
                copy_shared(mine, theirs, shard=self.shard, saved_shard=(rank, len(shards)))
        self.pointer, self.num_real = shards[0]["pointer"], shards[0]["num_real"]

    def __repr__(self) -> str:
        rank, num_ranks = self.shard
        part = f" on rank {rank} of {num_ranks}" if self.is_sharded else ""
        return (
            f"AnchorQueue({describe(self.size, self._banks)}, {self.num_real} of {self.size} "
            f"real, {self.num_bytes / 2**20:.0f} MiB{part})"
        )

    def _fill_uniform(self, bank: Tensor, generator: torch.Generator) -> None:
        bound = math.sqrt(3 / bank.shape[1])
        # Drawn on the CPU in float32, all of them on every rank: the same rows everywhere.
        for start in range(0, self.size, 4096):
            rows = torch.empty(min(4096, self.size - start), bank.shape[1])
            rows.uniform_(-bound, bound, generator=generator)
            write(bank, start, rows, size=self.size, shard=self.shard)
