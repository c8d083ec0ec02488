"""What the launcher decides before it launches: tiles, what is recorded, and in how many pieces.

No Triton in here, so that plans can be counted (`cost.py`) and printed anywhere.

What the second pass needs can be had in three ways, named by what is recorded:

- `both`: exponentials of both sides in 16 bits, 2 x 2 bytes per row and anchor, written and read.
- `teacher`: the teacher's alone; the student's logits are multiplied again, 2 Ds FLOP per row and
  anchor, without another read of the bank. For narrow students, whose rows fit a tile whole.
- `chunks`: float32 would record too much, so the anchors go through in chunks whose float32
  exponentials stay within `CHUNK_BYTES`; both sides' sums are kept apart, since the log-sum-exps
  are not final until the last chunk. Another 2 Ds FLOP per row and anchor.

The dear product, with the teacher's bank, is never done twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["fp32", "bf16", "fp16"]
Record = Literal["both", "teacher", "chunks"]

ITEMSIZE: dict[Dtype, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
CHUNK_BYTES = 32 << 20


@dataclass(frozen=True)
class Problem:
    """Sizes of one evaluation: B rows, n anchors, widths Dt and Ds of the banks."""

    B: int
    n: int
    Dt: int
    Ds: int
    dtype: Dtype
    one_bank: bool = False
    has_mask: bool = False


@dataclass(frozen=True)
class FirstTile:
    """Configuration of the first pass; with one bank `block_s` equals `block_k`."""

    block_b: int
    block_k: int
    block_s: int
    block_d: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class SecondTile:
    """Configuration of the second pass; `block_n` divides the first pass's parts."""

    block_b: int
    block_n: int
    block_c: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Plan:
    """How a problem is evaluated.

    Attributes:
        record: See above.
        first: Tiles of the first pass.
        second: Tiles of the second pass.
        num_shares: Parts of the anchors that the second pass adds up apart.
        chunk: Anchors that go through both passes together; all of them unless in chunks.
    """

    record: Record
    first: FirstTile
    second: SecondTile
    num_shares: int
    chunk: int

    @property
    def sides(self) -> int:
        """Sums that the second pass keeps: q - p, or p and q."""
        return 2 if self.record == "chunks" else 1

    @property
    def num_records(self) -> int:
        """Sides whose exponentials are recorded."""
        return 1 if self.record == "teacher" else 2

    @property
    def rows(self) -> int:
        """What the rows are padded to a multiple of, for both passes."""
        return max(self.first.block_b, self.second.block_b)

    def padded(self, problem: Problem, n: int) -> tuple[int, int, int]:
        """Return R, N and C: rows, `n` anchors and columns rounded up to whole tiles."""
        return (
            round_up(problem.B, self.rows),
            round_up(n, self.first.block_k),
            round_up(problem.Ds, self.second.block_c),
        )


def round_up(number: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least `number`."""
    return -(-number // step) * step
