"""Merges the statistics of all parts of the anchors into three numbers per row.

Shapes: B rows, R of them with padding; T tiles of anchors, P = T * PARTS parts.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["B", "num_parts"])
def merge(
    teacher_peaks,  # T x R
    statistics,  # 4 x P x R: student's peak and mass, teacher's mass, gap under the teacher's mass
    merged,  # 3 x B, float64: lse_t, lse_s, gap, natural logarithms
    B,
    R,
    num_parts,
    PARTS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Write the log-sum-exps and the mean gap between the logits; a program takes BLOCK_R rows."""
    lane = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row = tl.minimum(lane, B - 1)
    stride = num_parts.to(tl.int64) * R
    highest_t = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    highest_s = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    for first in range(0, num_parts, BLOCK_P):
        part = tl.minimum(first + tl.arange(0, BLOCK_P), num_parts - 1)
        peak_t = _load(teacher_peaks, part // PARTS, R, row)
        peak_s = _load(statistics, part, R, row)
        highest_t = tl.maximum(highest_t, tl.max(peak_t, 0))
        highest_s = tl.maximum(highest_s, tl.max(peak_s, 0))
    mass_t = tl.zeros((BLOCK_R,), tl.float64)
    mass_s = tl.zeros((BLOCK_R,), tl.float64)
    gap = tl.zeros((BLOCK_R,), tl.float64)
    for first in range(0, num_parts, BLOCK_P):
        inside = (first + tl.arange(0, BLOCK_P) < num_parts)[:, None]
        part = tl.minimum(first + tl.arange(0, BLOCK_P), num_parts - 1)
        peak_t = _load(teacher_peaks, part // PARTS, R, row)
        peak_s = _load(statistics, part, R, row)
        weight_t = tl.where(inside, tl.exp2(peak_t - highest_t[None, :]), 0.0).to(tl.float64)
        weight_s = tl.where(inside, tl.exp2(peak_s - highest_s[None, :]), 0.0).to(tl.float64)
        part_t = _load(statistics + 2 * stride, part, R, row).to(tl.float64)
        part_gap = _load(statistics + 3 * stride, part, R, row).to(tl.float64)
        part_gap += part_t * (peak_t.to(tl.float64) - peak_s.to(tl.float64))
        mass_t += tl.sum(weight_t * part_t, 0)
        mass_s += tl.sum(weight_s * _load(statistics + stride, part, R, row), 0)
        gap += tl.sum(weight_t * part_gap, 0)
    place = merged + row
    tl.store(place, (highest_t + tl.log2(mass_t)) * _LN2, mask=lane < B)
    tl.store(place + B, (highest_s + tl.log2(mass_s)) * _LN2, mask=lane < B)
    tl.store(place + 2 * B, gap * _LN2 / mass_t, mask=lane < B)


@triton.jit
def _load(matrix, line, stride, row):
    return tl.load(matrix + line[:, None].to(tl.int64) * stride + row[None, :])
