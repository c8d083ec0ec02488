"""Launch plans of the fused kernels: tile sizes, what is recorded, and in how many chunks.

Does not import Triton, so that plans can be counted (`cost.py`) and printed anywhere.

The second pass gets its exponentials in one of three ways, named by what is recorded:

- `both`: exponentials of both sides in 16 bits, 2 x 2 bytes per row and anchor, written and read.
- `teacher`: only the teacher's; the student's logits are recomputed, 2 Ds FLOP per row and anchor,
  without another read of the bank. For narrow students, whose rows fit into one tile.
- `chunks`: a float32 record would be too large, so the anchors are processed in chunks whose
  float32 exponentials take at most `CHUNK_BYTES`; the sums of both sides are kept separate, because
  the log-sum-exps are final only after the last chunk. Another 2 Ds FLOP per row and anchor.

The expensive product, with the teacher's bank, is never done twice.

Tile sizes (`tools/aot_check.py` compiles every one of them):

A tile of BLOCK_B x BLOCK_K products reads BLOCK_B + BLOCK_K rows per column: 128 x 256 gives 85
FLOP per byte from the L2 cache, 128 x 128 gives 64. The 128 x 256 float32 sums take 128 of the 255
registers of a thread with 8 warps, and more would spill. With one bank a program keeps the sums of
both sides, so 64 x 256. Small batches use fewer rows.

The second pass computes its 16-bit weights in registers. When it recomputes the student's logits it
keeps whole rows of the student's bank, up to 256 columns, for 64 rows of the batch.

float32 does not use tensor cores: small tiles, limited by arithmetic. Generations differ in shared
memory and in the registers of a product; capabilities not listed use the tiles of the first, which
need at most 99 KiB of shared memory.
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
    """The launch parameters for a problem."""

    record: Record
    first: FirstTile
    second: SecondTile
    num_shares: int  # parts of the anchors that the second pass sums separately
    chunk: int  # anchors per chunk; all of them unless in chunks

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
        """Rows are padded to a multiple of this, for both passes."""
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


@dataclass(frozen=True)
class Tiles:
    """The candidates on one generation of GPUs, the usual one first; `float` is float32."""

    first: tuple[FirstTile, ...]
    first_one_bank: tuple[FirstTile, ...]
    second: tuple[SecondTile, ...]
    second_narrow: tuple[SecondTile, ...]  # recomputes the student's logits
    first_float: tuple[FirstTile, ...] = (FirstTile(64, 64, 32, 32, 8, 3),)
    first_float_one_bank: tuple[FirstTile, ...] = (FirstTile(64, 64, 64, 32, 8, 3),)
    second_float: tuple[SecondTile, ...] = (SecondTile(64, 32, 64, 8, 3),)


_FIRST = (
    FirstTile(128, 256, 64, 64, 8, 3),
    FirstTile(128, 128, 64, 64, 8, 3),
    FirstTile(64, 256, 64, 64, 8, 3),
)
_FIRST_ONE_BANK = (
    FirstTile(64, 256, 256, 64, 8, 3),
    FirstTile(128, 64, 64, 64, 8, 3),
)
_SECOND = (
    SecondTile(128, 64, 256, 8, 3),
    SecondTile(128, 64, 128, 8, 3),
    SecondTile(64, 64, 128, 4, 3),
)
_SECOND_NARROW = (
    SecondTile(64, 32, 256, 8, 2),
    SecondTile(64, 64, 128, 4, 2),
)
TILES = {
    80: Tiles(
        (FirstTile(128, 256, 64, 32, 8, 4), *_FIRST[1:]),
        _FIRST_ONE_BANK,
        (SecondTile(128, 32, 256, 8, 3), *_SECOND[1:]),
        _SECOND_NARROW,
    ),
    90: Tiles(_FIRST, _FIRST_ONE_BANK, _SECOND, _SECOND_NARROW),
    100: Tiles(
        (*_FIRST[:2], FirstTile(64, 128, 64, 64, 4, 3)), _FIRST_ONE_BANK, _SECOND, _SECOND_NARROW
    ),
}


def tiles_for(capability: tuple[int, int]) -> Tiles:
    """Return the tiles for a compute capability such as (9, 0)."""
    generation = {(9, 0): 90, (10, 0): 100, (10, 3): 100}.get(capability, 80)
    return TILES[generation]
