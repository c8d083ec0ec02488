"""Second pass over the student's anchors: the gradient, from what the first pass recorded.

A program adds up (q - p) A_s for BLOCK_B rows and BLOCK_C columns of the bank over its share of the
anchors; the shares are written apart and added up in a fixed order. p comes from the record. q
comes from the record too, or (RECOMPUTE) from the student's logits once more: the tile of anchors
that the sum needs is in shared memory anyway, so that costs products but neither a record nor
another read. With SIDES the sums with q and with p are kept apart, for log-sum-exps that are not
final yet.

Shapes as in `first_pass`; C is Ds rounded up to BLOCK_C.
"""

from __future__ import annotations

import triton
import triton.language as tl

from distill.kernels.fused.first_pass import EXCLUDED, hidden_anchors, tile_of

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["B", "n", "tiles_per_share"])
def second_pass(
    record,  # 2 (1 with RECOMPUTE) x R x N: exponentials
    teacher_peaks,  # N / BLOCK_K x R
    student_peaks,  # N / BLOCK_S x R
    lse,  # 2 x B, float64: of teacher and student, natural logarithms
    student,  # B x Ds, in the bank's dtype
    student_bank,  # n x Ds
    image_index,  # B, int64
    anchor_index,  # n, int64
    partial,  # SIDES x shares x R x C, float32
    B,
    n,
    width,
    student_scale,  # log2 e / temperature
    tiles_per_share,
    ROWS: tl.constexpr,  # R is a multiple of it, and it of BLOCK_B
    SIDES: tl.constexpr,  # 1: q - p; 2: p, then q
    RECOMPUTE: tl.constexpr,
    HAS_MASK: tl.constexpr,
    WEIGHT: tl.constexpr,  # keeps small probabilities in the range of float16
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Fill `partial` with sums times WEIGHT; the grid is sides x shares x rows x columns, flat."""
    R = tl.cdiv(B, ROWS).to(tl.int64) * ROWS  # products of two sizes may not fit into 32 bits
    N = tl.cdiv(n, BLOCK_K).to(tl.int64) * BLOCK_K
    column_tiles, row_tiles = tl.cdiv(width, BLOCK_C), tl.cdiv(B, ROWS) * (ROWS // BLOCK_B)
    C = column_tiles.to(tl.int64) * BLOCK_C
    columns = (tl.program_id(0) % column_tiles) * BLOCK_C
    rows = (tl.program_id(0) // column_tiles % row_tiles) * BLOCK_B
    share = tl.program_id(0) // column_tiles // row_tiles  # of one side after the other
    num_shares = tl.num_programs(0) // column_tiles // row_tiles // SIDES
    side = share // num_shares
    lane = tl.arange(0, BLOCK_B)
    row = tl.minimum(rows + lane, B - 1).to(tl.int64)
    column = columns + tl.arange(0, BLOCK_C)
    high_t, low_t = _base_2(tl.load(lse + row))
    high_s, low_s = _base_2(tl.load(lse + B + row))
    if SIDES == 2:
        high_t, low_t = tl.where(side == 0, high_t, high_s), tl.where(side == 0, low_t, low_s)
    if RECOMPUTE:
        embedding = tl.load(
            student + row[:, None] * width + column[None, :],
            mask=(column < width)[None, :],
            other=0.0,
        )
    total = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    first = share % num_shares * tiles_per_share * BLOCK_N
    for anchors in range(first, tl.minimum(first + tiles_per_share * BLOCK_N, n), BLOCK_N):
        anchor = tl.minimum(anchors + tl.arange(0, BLOCK_N), n - 1).to(tl.int64)
        a = tl.load(
            student_bank + anchor[:, None] * width + column[None, :],
            mask=(column < width)[None, :],
            other=0.0,
        )
        place = tile_of(record, rows, anchors, N, BLOCK_B, BLOCK_N)
        peaks_t = teacher_peaks + anchors // BLOCK_K * R + rows + lane
        peaks_s = student_peaks + anchors // BLOCK_S * R + rows + lane
        if SIDES == 2:
            if side == 1:
                place += R * N
                peaks_t = peaks_s
            weight = _share_of(place, peaks_t, high_t, low_t)
        else:
            if RECOMPUTE:
                s = tl.dot(embedding, tl.trans(a), input_precision=PRECISION) * student_scale
                hidden = hidden_anchors(
                    image_index, anchor_index, row, anchors, n, HAS_MASK, BLOCK_N
                )
                s = tl.where(hidden, EXCLUDED, s)
                q = tl.exp2(s - high_s[:, None] - low_s[:, None])
            else:
                q = _share_of(place + R * N, peaks_s, high_s, low_s)
            weight = q - _share_of(place, peaks_t, high_t, low_t)
        total = tl.dot((weight * WEIGHT).to(a.dtype), a, total, input_precision=PRECISION)
    tl.store(tile_of(partial + share * R * C, rows, columns, C, BLOCK_B, BLOCK_C), total)


@triton.jit
def _share_of(place, peaks, high, low):
    """Probabilities, from a tile of the record and its peaks."""
    scale = tl.exp2(tl.load(peaks) - high - low)
    return tl.load(place).to(tl.float32) * scale[:, None]


@triton.jit
def _base_2(lse):
    """Return a log-sum-exp over log 2 as a sum of two float32, so that differences lose nothing.

    A row without anchors has no probabilities: minus infinity is what makes them 0.
    """
    value = lse * _LOG2E
    high = value.to(tl.float32)
    low = (value - high).to(tl.float32)
    return high, tl.where(high > EXCLUDED / 2, low, float("inf"))
