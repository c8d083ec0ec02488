"""The anchor queue: embeddings of recent images, first in, first out.

Source: CompRess (Abbasi Koohpayegani et al., NeurIPS 2020). Anchor j of the teacher's bank and
anchor j of the student's come from the same image, so both banks share one pointer. Each anchor
also carries its image's index, by which a row can be kept from its own old embedding.
Shapes: B batch, K anchors the queue holds (`size`), D width.

Limits: one process holds the whole queue; rows that are not finite are written as they come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.errors import DistillError, UnknownNameError

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INITS = ("empty", "random")
NO_IMAGE = -1


@dataclass(frozen=True, eq=False)
class Anchors:
    """The real rows of a queue, as views of its banks: the next `enqueue` changes them.

    Attributes:
        teacher: N x Dt in the queue's dtype, N <= K.
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
        seed: Of the random rows; the same rows on every device.

    Attributes:
        pointer: Where the next row goes.
        num_real: Rows [:num_real] hold anchors, the others nothing.

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
    ) -> None:
        _check_sizes(size, teacher_dim, student_dim, dtype)
        if init not in INITS:
            raise UnknownNameError("queue init", init, INITS)
        self.size, self.dtype, self.pointer = size, dtype, 0
        self.num_real = size if init == "random" else 0
        widths = [teacher_dim] if student_dim is None else [teacher_dim, student_dim]
        self._banks = [torch.zeros(size, width, dtype=dtype, device=device) for width in widths]
        self._image_index = torch.full((size,), NO_IMAGE, dtype=torch.int64, device=device)
        if init == "random":
            generator = torch.Generator().manual_seed(seed)
            for bank in self._banks:
                _fill_uniform(bank, generator)

    @property
    def one_bank(self) -> bool:
        """Whether teacher and student read the same bank."""
        return len(self._banks) == 1

    @property
    def device(self) -> torch.device:
        """The banks' device."""
        return self._image_index.device

    @property
    def num_bytes(self) -> int:
        """Memory of banks and image indices."""
        return sum(tensor.nbytes for tensor in (*self._banks, self._image_index))

    @staticmethod
    def required_bytes(
        size: int, teacher_dim: int, student_dim: int | None, dtype: torch.dtype
    ) -> int:
        """Return the memory that a queue of these sizes would take, without allocating it.

        Raises:
            DistillError: A size or width below 1, or an unsupported dtype.
        """
        _check_sizes(size, teacher_dim, student_dim, dtype)
        row = (teacher_dim + (student_dim or 0)) * dtype.itemsize + torch.int64.itemsize
        return size * row

    def anchors(self) -> Anchors:
        """Return the real rows without copying them; none of them while the queue is empty."""
        banks = [bank[: self.num_real] for bank in self._banks]
        return Anchors(banks[0], banks[-1], self._image_index[: self.num_real])

    @torch.no_grad()
    def enqueue(self, teacher: Tensor, student: Tensor | None, image_index: Tensor) -> None:
        """Write the L2-normalized rows of a batch at the pointer and move it on by B, wrapping.

        A batch larger than the queue leaves its last K rows.

        Args:
            teacher: B x Dt, any float dtype; normalized in float32 at least.
            student: B x Ds; ignored, and may be None, with one bank.
            image_index: B, int64, >= 0.

        Raises:
            DistillError: A shape does not fit; nothing is written then.
        """
        batch: list[Tensor | None] = [teacher] if self.one_bank else [teacher, student]
        self._check_batch(batch, image_index)
        num_skipped = max(0, len(teacher) - self.size)
        start = (self.pointer + num_skipped) % self.size
        for bank, rows in zip(self._banks, batch, strict=True):
            assert rows is not None
            wide = rows[num_skipped:].to(
                bank.device, torch.promote_types(torch.float32, bank.dtype)
            )
            _write(bank, start, F.normalize(wide))
        _write(self._image_index, start, image_index[num_skipped:].to(self.device))
        self.pointer = (self.pointer + len(teacher)) % self.size
        self.num_real = min(self.size, self.num_real + len(teacher))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that `load_state_dict` restores; tensors are not copied."""
        return {
            "banks": list(self._banks),
            "image_index": self._image_index,
            "pointer": self.pointer,
            "num_real": self.num_real,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore banks, image indices, pointer and count from `state_dict`'s answer.

        Raises:
            DistillError: An entry is missing, unknown or does not fit; nothing is restored then.
        """
        own = self.state_dict()
        if state.keys() != own.keys():
            raise DistillError(
                f"the queue's state holds {sorted(state)}; it must hold {sorted(own)}"
            )
        pairs = [*zip(self._banks, state["banks"], strict=False)]
        pairs += [(self._image_index, state["image_index"])]
        if len(state["banks"]) != len(self._banks) or any(
            mine.shape != theirs.shape or mine.dtype != theirs.dtype for mine, theirs in pairs
        ):
            raise DistillError(
                f"the saved queue has banks {_describe(state['banks'])}, this one "
                f"{_describe(self._banks)}; build it with the saved size, widths and dtype"
            )
        pointer, num_real = state["pointer"], state["num_real"]
        if not (0 <= pointer < self.size and 0 <= num_real <= self.size):
            raise DistillError(
                f"the queue's state has pointer {pointer} and {num_real} real anchors; neither "
                f"fits a queue of {self.size}"
            )
        for mine, theirs in pairs:
            mine.copy_(theirs)
        self.pointer, self.num_real = pointer, num_real

    def __repr__(self) -> str:
        return (
            f"AnchorQueue({_describe(self._banks)}, {self.num_real} of {self.size} real, "
            f"{self.num_bytes / 2**20:.0f} MiB)"
        )

    def _check_batch(self, batch: list[Tensor | None], image_index: Tensor) -> None:
        num_rows = len(image_index)
        if image_index.ndim != 1 or image_index.dtype != torch.int64:
            raise DistillError(
                f"image_index is {image_index.dtype} of shape {tuple(image_index.shape)}; it must "
                "be int64 with one entry per row"
            )
        for name, bank, rows in zip(("teacher", "student"), self._banks, batch, strict=False):
            shape = None if rows is None else tuple(rows.shape)
            if shape != (num_rows, bank.shape[1]):
                raise DistillError(
                    f"{name} has shape {shape}; {num_rows} image indices and a bank of width "
                    f"{bank.shape[1]} want {(num_rows, bank.shape[1])}"
                )


def _check_sizes(size: int, teacher_dim: int, student_dim: int | None, dtype: torch.dtype) -> None:
    named = {"size": size, "teacher_dim": teacher_dim, "student_dim": student_dim}
    for name, value in named.items():
        if value is not None and value < 1:
            raise DistillError(f"the queue's {name} is {value}; it must be at least 1")
    if dtype not in DTYPES:
        allowed = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
        raise DistillError(f"the queue's dtype is {dtype}; it must be one of {allowed}")


def _fill_uniform(bank: Tensor, generator: torch.Generator) -> None:
    bound = math.sqrt(3 / bank.shape[1])
    for rows in bank.split(4096):  # drawn on the CPU in float32: the same everywhere
        rows.copy_(torch.empty(rows.shape).uniform_(-bound, bound, generator=generator))


def _write(buffer: Tensor, start: int, rows: Tensor) -> None:
    """Copy at most K rows into `buffer` from `start` on, continuing at its beginning."""
    before_end = min(len(rows), len(buffer) - start)
    buffer[start : start + before_end] = rows[:before_end]
    buffer[: len(rows) - before_end] = rows[before_end:]


def _describe(banks: list[Tensor]) -> str:
    return " and ".join(
        f"{' x '.join(map(str, bank.shape))} {str(bank.dtype).removeprefix('torch.')}"
        for bank in banks
    )
