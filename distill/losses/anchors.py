"""Which rank holds which anchor, when a queue is spread over W ranks.

Anchor g lies on rank g % W, in row g // W of that rank's buffers: round-robin, so that at every
moment the ranks hold equally many real anchors, give or take one, and those are the first rows of
each. A shard is (rank, W); one process is (0, 1). Shapes: K anchors of the whole queue.

The anchor queue: embeddings of recent images, first in, first out.

Source: CompRess (Abbasi Koohpayegani et al., NeurIPS 2020). Anchor j of the teacher's bank and
anchor j of the student's come from the same image, so both banks share one pointer. Each anchor
also carries its image's index, by which a row can be kept from its own old embedding.

A queue can be spread over W ranks (`distill.losses.anchors` says how). Pointer and counts are those
of the whole queue, the same on every rank; one process is W = 1 of the same code.

Shapes: B rows of the batch of all ranks, K anchors the queue holds (`size`), n of them on this rank
(K / W, rounded up or down), D width.

Limits: nothing is exchanged here, so every rank is given the whole batch to enqueue; rows that are
not finite are written as they come.

What the loss needs of its anchors, wherever they come from.

Refuses sizes, batches and saved states that an anchor queue cannot use, one sentence each.

Writes a batch into the banks: L2-normalized, in the banks' dtype, at the pointer.

On a CUDA device one fused kernel reads every row once and writes it once; elsewhere PyTorch
normalizes, casts and copies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.errors import DistillError, UnknownNameError
from distill.kernels import fused

Shard = tuple[int, int]


def num_held(num_anchors: int, shard: Shard) -> int:
    """Return how many of the first anchors of a queue a rank holds."""
    rank, num_ranks = shard
    return max(0, -(-(num_anchors - rank) // num_ranks))


def write(buffer: Tensor, start: int, rows: Tensor, *, size: int, shard: Shard) -> None:
    """Store rows as anchors `start` and following, continuing at anchor 0; keep a rank's own.

    Of consecutive anchors a rank keeps every W-th, which are consecutive rows of its buffer.

    Args:
        buffer: Of the rank, `num_held(size, shard)` rows.
        start: Anchor of the first row, in [0, size).
        rows: At most `size` of them.
        size: K.
        shard: Of the buffer.
    """
    rank, num_ranks = shard
    before_end = min(len(rows), size - start)
    for first, part in ((start, rows[:before_end]), (0, rows[before_end:])):
        skipped = (rank - first) % num_ranks
        mine, place = part[skipped::num_ranks], (first + skipped) // num_ranks
        buffer[place : place + len(mine)] = mine


def copy_shared(buffer: Tensor, saved: Tensor, *, shard: Shard, saved_shard: Shard) -> None:
    """Copy the anchors that two shards of one queue have in common, out of a saved buffer.

    Nothing but these anchors is read, and nothing is kept in between.

    Args:
        buffer: Of `shard`; changed in place.
        saved: Of `saved_shard`, which may be one of another number of ranks.
        shard: Where to.
        saved_shard: Where from.
    """
    (rank, num_ranks), (saved_rank, num_saved) = shard, saved_shard
    common = math.gcd(num_ranks, num_saved)
    if (rank - saved_rank) % common:
        return  # no anchor lies on both
    own = range(rank, num_ranks * num_saved, num_ranks)
    first = next(anchor for anchor in own if anchor % num_saved == saved_rank)
    # From there on, every lcm(num_ranks, num_saved)-th anchor: regular steps through both buffers.
    source = saved[first // num_saved :: num_ranks // common]
    buffer[first // num_ranks :: num_saved // common] = source


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
        dim: Dt.
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
        dim: int,
        student_dim: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        init: str = "empty",
        seed: int = 0,
        shard: Shard = (0, 1),
    ) -> None:
        check_sizes(size, dim, student_dim, dtype)
        if init not in INITS:
            raise UnknownNameError("queue init", init, INITS)
        assert 0 <= shard[0] < shard[1]
        self.size, self.shard, self.pointer = size, shard, 0
        self.num_valid = size if init == "random" else 0
        widths = [dim] if student_dim is None else [dim, student_dim]
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
        dim: int,
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
        check_sizes(size, dim, student_dim, dtype)
        row = (dim + (student_dim or 0)) * dtype.itemsize + torch.int64.itemsize
        return num_held(size, (0, num_shards)) * row

    def anchors(self) -> Anchors:
        """Return this rank's real rows without copying them; none while it has none."""
        num_valid = num_held(self.num_valid, self.shard)
        banks = [bank[:num_valid] for bank in self._banks]
        return Anchors(banks[0], banks[-1], self._image_index[:num_valid])

    @torch.no_grad()
    def enqueue(
        self, teacher: Tensor, student: Tensor | None = None, image_index: Tensor | None = None
    ) -> None:
        """Write the L2-normalized rows of a batch at the pointer and move it on by B, wrapping.

        A batch larger than the queue leaves its last K rows. Every rank is given the same rows and
        writes its own of them.

        Args:
            teacher: B x Dt, any float dtype; normalized in float32 at least.
            student: B x Ds; ignored, and may be None, with one bank.
            image_index: B, int64, >= 0; None for rows of no known image, which no row masks.

        Raises:
            DistillError: A shape does not fit; nothing is written then.
        """
        if image_index is None:
            image_index = torch.full((len(teacher),), NO_IMAGE, device=self._image_index.device)
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
        self.num_valid = min(self.size, self.num_valid + len(teacher))

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's part of what `load_state_dict` restores; tensors are not copied."""
        return {
            "banks": list(self._banks),
            "image_index": self._image_index,
            "pointer": self.pointer,
            "num_valid": self.num_valid,
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
        self.pointer, self.num_valid = shards[0]["pointer"], shards[0]["num_valid"]

    def __repr__(self) -> str:
        rank, num_ranks = self.shard
        part = f" on rank {rank} of {num_ranks}" if self.is_sharded else ""
        return (
            f"AnchorQueue({describe(self.size, self._banks)}, {self.num_valid} of {self.size} "
            f"real, {self.num_bytes / 2**20:.0f} MiB{part})"
        )

    def _fill_uniform(self, bank: Tensor, generator: torch.Generator) -> None:
        bound = math.sqrt(3 / bank.shape[1])
        # Drawn on the CPU in float32, all of them on every rank: the same rows everywhere.
        for start in range(0, self.size, 4096):
            rows = torch.empty(min(4096, self.size - start), bank.shape[1])
            rows.uniform_(-bound, bound, generator=generator)
            write(bank, start, rows, size=self.size, shard=self.shard)


class AnchorMemory(Protocol):
    """Paired banks of unit rows; `AnchorQueue` and `DatasetAnchors` are such."""

    size: int
    shard: Shard
    num_valid: int

    @property
    def is_sharded(self) -> bool:
        """Whether other ranks hold a part of the anchors."""
        ...

    @property
    def one_bank(self) -> bool:
        """Whether teacher and student read the same bank."""
        ...

    def anchors(self) -> Anchors:
        """Return this rank's real anchors without copying them."""
        ...

    def enqueue(
        self, teacher: Tensor, student: Tensor | None = None, image_index: Tensor | None = None
    ) -> None:
        """Take in the rows of a batch of all ranks, after its loss."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's part of what a checkpoint must hold; empty for nothing."""
        ...

    def load_state_dict(self, *shards: dict[str, Any]) -> None:
        """Restore what `state_dict` returned on every rank, in the order of the ranks."""
        ...


DTYPES_BY_NAME = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_sizes(size: int, dim: int, student_dim: int | None, dtype: torch.dtype) -> None:
    """Raise `DistillError` unless a queue can have these sizes and this dtype."""
    named = {"size": size, "dim": dim, "student_dim": student_dim}
    for name, value in named.items():
        if value is not None and value < 1:
            raise DistillError(f"the queue's {name} is {value}; it must be at least 1")
    if dtype not in DTYPES:
        allowed = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
        raise DistillError(f"the queue's dtype is {dtype}; it must be one of {allowed}")


def check_batch(batch: Sequence[Tensor | None], image_index: Tensor, banks: list[Tensor]) -> None:
    """Raise `DistillError` unless rows for each bank and image indices fit; see `enqueue`."""
    num_rows = len(image_index)
    if image_index.ndim != 1 or image_index.dtype != torch.int64:
        raise DistillError(
            f"image_index is {image_index.dtype} of shape {tuple(image_index.shape)}; it must "
            "be int64 with one entry per row"
        )
    for name, bank, rows in zip(("teacher", "student"), banks, batch, strict=False):
        shape = None if rows is None else tuple(rows.shape)
        if shape != (num_rows, bank.shape[1]):
            raise DistillError(
                f"{name} has shape {shape}; {num_rows} image indices and a bank of width "
                f"{bank.shape[1]} want {(num_rows, bank.shape[1])}"
            )


def check_states(shards: Sequence[dict[str, Any]], own: dict[str, Any], *, size: int) -> None:
    """Raise `DistillError` unless these are all shards of one queue like this one.

    Args:
        shards: The saved states, in the order of the ranks.
        own: State of the queue that is to be restored, of one rank.
        size: K of that queue.
    """
    for rank, state in enumerate(shards):
        if state.keys() != own.keys():
            raise DistillError(
                f"the queue's state holds {sorted(state)}; it must hold {sorted(own)}"
            )
        n = num_held(size, (rank, len(shards)))
        sizes_fit = all(len(tensor) == n for tensor in tensors_of(state))
        if not sizes_fit or _row_types(state) != _row_types(own):
            saved = sum(len(shard["image_index"]) for shard in shards)
            raise DistillError(
                f"the saved queue has banks {describe(saved, state['banks'])}, this one "
                f"{describe(size, own['banks'])}; build it with the saved size, widths and dtype"
            )
    moments = {(state["pointer"], state["num_valid"]) for state in shards}
    if len(moments) != 1:
        raise DistillError(
            f"the {len(shards)} shards of the saved queue were written at different steps; use "
            "those of one checkpoint"
        )
    pointer, num_valid = moments.pop()
    if not (0 <= pointer < size and 0 <= num_valid <= size):
        raise DistillError(
            f"the queue's state has pointer {pointer} and {num_valid} real anchors; neither "
            f"fits a queue of {size}"
        )


def tensors_of(state: dict[str, Any]) -> list[Tensor]:
    """Return the tensors of a queue's state: its banks and its image indices."""
    return [*state["banks"], state["image_index"]]


def describe(size: int, banks: list[Tensor]) -> str:
    """Say in words what a queue of `size` anchors with such banks is."""
    return " and ".join(
        f"{size} x {bank.shape[1]} {str(bank.dtype).removeprefix('torch.')}" for bank in banks
    )


def _row_types(state: dict[str, Any]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape[1:], tensor.dtype) for tensor in tensors_of(state)]


def write_batch(
    banks: Sequence[Tensor],
    bank_index: Tensor,
    rows: Sequence[Tensor],
    image_index: Tensor,
    *,
    start: int,
    size: int,
    shard: Shard,
) -> None:
    """Write unit rows into one or two banks, and their images' indices.

    Args:
        banks: The rank's parts of the banks, `num_held(size, shard)` x width each.
        bank_index: Image indices of their anchors, int64.
        rows: For each bank, at most `size` of them, any float dtype; normalized in float32 at
            least.
        image_index: An index per row, int64.
        start: Anchor of the first row, in [0, size); the others follow, wrapping.
        size: K of the whole queue.
        shard: Of the rank.
    """
    rows = [part.to(bank.device) for part, bank in zip(rows, banks, strict=True)]
    image_index = image_index.to(bank_index.device)
    place: dict[str, Any] = {"start": start, "size": size, "shard": shard}
    if fused.preferred(banks[0]):
        from distill.kernels.fused.enqueue import WIDEST, enqueue_rows

        if max(bank.shape[1] for bank in banks) <= WIDEST:
            enqueue_rows(banks, bank_index, rows, image_index, **place)
            return
    for bank, part in zip(banks, rows, strict=True):
        wide = part.to(torch.promote_types(torch.float32, bank.dtype))
        write(bank, rows=F.normalize(wide), **place)
    write(bank_index, rows=image_index, **place)
