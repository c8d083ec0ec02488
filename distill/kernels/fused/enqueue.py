"""Enqueues a batch in one pass: normalize rows, cast them to the bank's dtype, write them.

A program takes one image: it reads its rows once, keeps them in registers, and writes them once,
with the image's index. In a queue that ranks share (position g on rank g modulo their number) all
but the owner skip it. Source of the queue: CompRess (Abbasi Koohpayegani et al., NeurIPS 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 16384  # columns of a row that a program keeps in its registers


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
    """Write unit rows into one or two banks, and their images' indices.

    Args:
        banks: This rank's parts of the teacher's and, unless there is one, the student's bank.
        bank_index: Image indices of the anchors of those parts, int64.
        rows: For each bank, at most `size` rows x width, any float dtype up to float32.
        image_index: An index per row, int64.
        start: Position of the first row; the others follow, wrapping at `size`.
        size: Anchors of the whole queue.
        shard: Rank and number of ranks that share it.
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
    unit = x / tl.where(norm < 1e-12, 1e-12, norm)  # a row that is no number stays one
    tl.store(bank + anchor * width + column, unit.to(bank.dtype.element_ty), mask=column < width)
