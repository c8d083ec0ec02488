"""Enqueues a batch in one pass: normalizes rows, casts them to the bank's dtype, writes them.

A program reads and writes the rows of one image, with the image's index. In a queue sharded over
ranks (position g is on rank g modulo their number) only the owner writes. Source of the queue:
CompRess (Abbasi Koohpayegani et al., NeurIPS 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 16384  # columns of a row that fit into a program's registers


def enqueue_rows(
    banks: Sequence[Tensor],
    bank_index: Tensor,
    rows: Sequence[Tensor],
    image_index: Tensor,
    *,
    start: int,
    size: int,
    shard: tuple[int, int],
) -> None:
    """Write normalized rows and their image indices into one or two banks.

    Args:
        banks: This rank's shards of the teacher's and, if there are two banks, the student's.
        bank_index: Image indices of the anchors of the shards, int64.
        rows: For each bank, at most `size` rows x width, any float dtype up to float32.
        image_index: An index per row, int64.
        start: Position of the first row; the others follow, wrapping at `size`.
        size: Anchors of the whole queue.
        shard: Rank and number of ranks.
    """
    if len(image_index) == 0:
        return
    rows = [part.contiguous() for part in rows]
    widths = [bank.shape[1] for bank in banks]
    blocks = [triton.next_power_of_2(width) for width in widths]
    with torch.cuda.device_of(bank_index):  # Triton launches on the current device
        enqueue[(len(image_index),)](
            rows[0],
            rows[-1],
            image_index.contiguous(),
            banks[0],
            banks[-1],
            bank_index,
            start,
            size,
            *shard,
            widths[0],
            widths[-1],
            ONE_BANK=len(banks) == 1,
            BLOCK_T=blocks[0],
            BLOCK_S=blocks[-1],
            num_warps=8 if max(blocks) > 2048 else 4,
        )


@triton.jit(do_not_specialize=["start", "size", "rank", "num_ranks"])
def enqueue(
    teacher,  # B x Dt
    student,  # B x Ds
    image_index,  # B, int64
    teacher_bank,  # n x Dt
    student_bank,  # n x Ds
    bank_index,  # n, int64
    start,
    size,
    rank,
    num_ranks,
    teacher_width,
    student_width,
    ONE_BANK: tl.constexpr,
    BLOCK_T: tl.constexpr,  # powers of two, at least the widths
    BLOCK_S: tl.constexpr,
):
    """Write one image; the grid is the rows of the batch."""
    row = tl.program_id(0).to(tl.int64)
    position = (start + row) % size
    if position % num_ranks == rank:
        anchor = position // num_ranks
        tl.store(bank_index + anchor, tl.load(image_index + row))
        _write(teacher, teacher_bank, row, anchor, teacher_width, BLOCK_T)
        if not ONE_BANK:
            _write(student, student_bank, row, anchor, student_width, BLOCK_S)


@triton.jit
def _write(rows, bank, row, anchor, width, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    x = tl.load(rows + row * width + column, mask=column < width, other=0.0).to(tl.float32)
    norm = tl.sqrt(tl.sum(x * x, 0))
    unit = x / tl.where(norm < 1e-12, 1e-12, norm)  # NaN stays NaN
    tl.store(bank + anchor * width + column, unit.to(bank.dtype.element_ty), mask=column < width)
