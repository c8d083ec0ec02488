"""The Triton kernels of the anchor KL: two passes over the anchors with a merge between them.

First pass: both similarities, and what the softmaxes need of them. A program takes BLOCK_B rows and
BLOCK_K anchors. It multiplies the teacher's side and writes its exponentials to the record; then it
does the same for the student in parts of BLOCK_S anchors, pairs the student's logits with the
teacher's exponentials just written, and writes statistics. Both sides' logits at once, or the
record's addresses during the student's product, would not fit into the registers. With one bank,
every tile of anchors is read once for both sides instead.

Logits are in base 2 (times log2 e), where an exponential is one instruction. Row tiles of one tile
of anchors are neighbors in the grid, so that they share the anchors through the L2 cache. Rows and
anchors beyond the last are read as the last one: addresses without conditions need fewer registers.
Record and statistics have room for whole tiles.

Merge: the statistics of all parts of the anchors become three numbers per row.

Second pass, over the student's anchors: the gradient. A program adds up (q - p) A_s for BLOCK_B
rows and BLOCK_C columns of the bank over its share of the anchors; the shares are written apart and
added up in a fixed order. p comes from the record. q comes from the record too, or (RECOMPUTE) from
the student's logits once more: the tile of anchors that the sum needs is in shared memory anyway,
so that costs products but neither a record nor another read. With SIDES the sums with q and with p
are kept apart, for log-sum-exps that are not final yet.

Shapes: B rows, n anchors, Dt and Ds widths; R and N are B and n rounded up to ROWS and BLOCK_K, P =
N / BLOCK_S parts, T tiles of anchors, C is Ds rounded up to BLOCK_C.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Stands for minus infinity in an excluded anchor's logit: far below any real one, yet finite, so
# that a tile of nothing else gets weight zero in the merge, and a row of nothing else has equal p
# and q: no loss, no gradient.
EXCLUDED = tl.constexpr(-1e30)


@triton.jit(do_not_specialize=["B", "n"])
def first_pass(
    teacher,  # B x Dt, in the banks' dtype
    student,  # B x Ds
    teacher_bank,  # n x Dt
    student_bank,  # n x Ds
    image_index,  # B, int64
    anchor_index,  # n, int64
    record,  # 2 (1 without RECORD_STUDENT) x R x N: exponentials
    teacher_peaks,  # N / BLOCK_K x R
    statistics,  # 4 x P x R: student's peak and mass, teacher's mass, gap under the teacher's mass
    B,
    n,
    teacher_width,
    student_width,
    teacher_scale,  # log2 e / temperature
    student_scale,
    ONE_BANK: tl.constexpr,
    HAS_MASK: tl.constexpr,
    RECORD_STUDENT: tl.constexpr,
    EVEN: tl.constexpr,  # BLOCK_D divides both widths
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,  # R is a multiple of it, and it of BLOCK_B
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Fill the record and the statistics; the grid is tiles of anchors x tiles of rows, flat."""
    row_tiles = tl.cdiv(B, ROWS) * (ROWS // BLOCK_B)
    R = row_tiles.to(tl.int64) * BLOCK_B  # products of two sizes may not fit into 32 bits
    N = tl.cdiv(n, BLOCK_K).to(tl.int64) * BLOCK_K
    tile = tl.program_id(0) // row_tiles
    rows = (tl.program_id(0) % row_tiles) * BLOCK_B
    anchors = tile * BLOCK_K
    row = tl.minimum(rows + tl.arange(0, BLOCK_B), B - 1).to(tl.int64)
    anchor = tl.minimum(anchors + tl.arange(0, BLOCK_K), n - 1).to(tl.int64)
    peaks = teacher_peaks + tile * R + rows + tl.arange(0, BLOCK_B)
    if ONE_BANK:
        t, s = _products_of_both(
            teacher + row * teacher_width,
            student + row * teacher_width,
            teacher_bank + anchor * teacher_width,
            teacher_width,
            EVEN,
            PRECISION,
            BLOCK_D,
        )
        hidden = hidden_anchors(image_index, anchor_index, row, anchors, n, HAS_MASK, BLOCK_K)
        place = tile_of(record, rows, anchors, N, BLOCK_B, BLOCK_K)
        peak, below = _below_peak(t * teacher_scale, hidden)
        p = tl.exp2(below).to(record.dtype.element_ty)
        tl.store(peaks, peak)
        tl.store(place, p)
        peak, below = _below_peak(s * student_scale, hidden)
        place_in_part = statistics + tile * R + rows + tl.arange(0, BLOCK_B)
        q = _pair(p, peak, below, place_in_part, N // BLOCK_K * R)
        if RECORD_STUDENT:
            tl.store(place + R * N, q.to(record.dtype.element_ty))
    else:
        t = _products(
            teacher + row * teacher_width,
            teacher_bank + anchor * teacher_width,
            teacher_width,
            EVEN,
            PRECISION,
            BLOCK_D,
        )
        hidden = hidden_anchors(image_index, anchor_index, row, anchors, n, HAS_MASK, BLOCK_K)
        peak, below = _below_peak(t * teacher_scale, hidden)
        place = tile_of(record, rows, anchors, N, BLOCK_B, BLOCK_K)
        tl.store(place, tl.exp2(below).to(record.dtype.element_ty))
        tl.store(peaks, peak)
        tl.debug_barrier()  # other threads of this program read what this one has written
        for part in range(anchors // BLOCK_S, (anchors + BLOCK_K) // BLOCK_S):
            _student_part(
                student,
                student_bank,
                image_index,
                anchor_index,
                record,
                statistics,
                part,
                rows,
                row,
                n,
                student_width,
                student_scale,
                R,
                N,
                HAS_MASK,
                RECORD_STUDENT,
                EVEN,
                PRECISION,
                BLOCK_B,
                BLOCK_S,
                BLOCK_D,
            )


@triton.jit
def _student_part(
    student,
    student_bank,
    image_index,
    anchor_index,
    record,
    statistics,
    part,
    rows,
    row,
    n,
    student_width,
    student_scale,
    R,
    N,
    HAS_MASK: tl.constexpr,
    RECORD_STUDENT: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    anchors = part * BLOCK_S
    anchor = tl.minimum(anchors + tl.arange(0, BLOCK_S), n - 1).to(tl.int64)
    s = _products(
        student + row * student_width,
        student_bank + anchor * student_width,
        student_width,
        EVEN,
        PRECISION,
        BLOCK_D,
    )
    hidden = hidden_anchors(image_index, anchor_index, row, anchors, n, HAS_MASK, BLOCK_S)
    peak, below = _below_peak(s * student_scale, hidden)
    place = tile_of(record, rows, anchors, N, BLOCK_B, BLOCK_S)
    place_in_part = statistics + part * R + rows + tl.arange(0, BLOCK_B)
    q = _pair(tl.load(place), peak, below, place_in_part, N // BLOCK_S * R)
    if RECORD_STUDENT:
        tl.store(place + R * N, q.to(record.dtype.element_ty))


@triton.jit
def _pair(p, peak, below, statistics, stride):
    """Write the statistics of a part; return the student's exponentials.

    The teacher's logits are gone. As log2 of the very numbers in the record they belong to the
    distribution that the second pass will read, however that was rounded.
    """
    p = p.to(tl.float32)
    gap = tl.sum(p * (tl.log2(tl.maximum(p, 1e-37)) - below), 1)
    tl.store(statistics, peak)
    tl.store(statistics + 2 * stride, tl.sum(p, 1))
    tl.store(statistics + 3 * stride, gap)
    q = tl.exp2(below)
    tl.store(statistics + stride, tl.sum(q, 1))
    return q


@triton.jit
def _below_peak(logit, hidden):
    """Return each row's largest logit and the logits minus it, hidden ones far below."""
    logit = tl.where(hidden, EXCLUDED, logit)
    peak = tl.max(logit, 1)
    return peak, logit - peak[:, None]


@triton.jit
def hidden_anchors(
    image_index, anchor_index, row, anchors, n, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr
):
    """Whether an anchor is not there or belongs to a row's own image, 1 or BLOCK_B x BLOCK."""
    anchor = anchors + tl.arange(0, BLOCK)
    hidden = (anchor >= n)[None, :]
    if HAS_MASK:
        owner = tl.load(anchor_index + tl.minimum(anchor, n - 1))
        hidden = hidden | (tl.load(image_index + row)[:, None] == owner[None, :])
    return hidden


@triton.jit
def tile_of(matrix, rows, columns, stride, BLOCK_B: tl.constexpr, BLOCK: tl.constexpr):
    """Addresses of a tile, BLOCK_B x BLOCK, given its first row and column."""
    offset = tl.arange(0, BLOCK_B).to(tl.int64)[:, None] * stride + tl.arange(0, BLOCK)[None, :]
    return matrix + rows * stride + columns + offset


@triton.jit
def _products(
    rows, anchors, width, EVEN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Inner products of rows and anchors, given by the addresses of their first numbers."""
    column = tl.arange(0, BLOCK_D)
    total = tl.zeros((rows.shape[0], anchors.shape[0]), tl.float32)
    for start in range(0, width, BLOCK_D):
        x = _columns(rows, start + column, width, EVEN)
        a = _columns(anchors, start + column, width, EVEN)
        total = tl.dot(x, tl.trans(a), total, input_precision=PRECISION)
    return total


@triton.jit
def _products_of_both(
    teacher,
    student,
    anchors,
    width,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """As `_products` for two sets of rows, with one read of the anchors."""
    column = tl.arange(0, BLOCK_D)
    t = tl.zeros((teacher.shape[0], anchors.shape[0]), tl.float32)
    s = tl.zeros((teacher.shape[0], anchors.shape[0]), tl.float32)
    for start in range(0, width, BLOCK_D):
        a = tl.trans(_columns(anchors, start + column, width, EVEN))
        x = _columns(teacher, start + column, width, EVEN)
        t = tl.dot(x, a, t, input_precision=PRECISION)
        y = _columns(student, start + column, width, EVEN)
        s = tl.dot(y, a, s, input_precision=PRECISION)
    return t, s


@triton.jit
def _columns(rows, column, width, EVEN: tl.constexpr):
    """Load columns of rows, zeros beyond the last column."""
    place = rows[:, None] + column[None, :]
    if EVEN:
        return tl.load(place)
    return tl.load(place, mask=(column < width)[None, :], other=0.0)


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
