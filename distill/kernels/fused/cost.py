"""Cost model of a plan on a GPU: bytes requested by the kernels, bytes of device memory, FLOP.

The requested bytes are counted exactly from the kernels' loads and stores (a test compares them
with the interpreter's). The bytes of device memory follow from a model of the L2 cache:

- Concurrent programs that read the same tile read it once: row tiles of one tile of anchors in the
  first pass, all row and column tiles of one share in the second. As many programs run at a time as
  there are multiprocessors; more of them read it once per wave.
- Half of the L2 keeps what is reused soon, if it fits: the embeddings, the statistics, partial
  sums, a chunk's record, the last tile of the record.

The time of a pass is the larger of memory bytes over bandwidth and FLOP over the rate, plus a
launch. A pass that recomputes logits cannot overlap its two products with the exponentials between
them, which costs `CHAIN_SECONDS` per tile. These constants are assumptions, so measured plans
(`tuning.py`) take precedence.

Sources of the devices' rates and sizes: NVIDIA's data sheets of A100 80 GB SXM, H100 SXM, H200 SXM
and HGX B200 (dense rates); L2 capacities from the architecture white papers.
"""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass

from distill.kernels.fused.plan import ITEMSIZE, Dtype, Plan, Problem, round_up


@dataclass(frozen=True)
class Device:
    """The data sheet of a GPU."""

    name: str
    capability: tuple[int, int]
    num_sms: int  # multiprocessors
    bandwidth: float  # of device memory, bytes per second
    tensor_rate: float  # dense bf16 and fp16 products, FLOP per second
    float_rate: float  # float32 without tensor cores, FLOP per second
    l2_bytes: int

    def rate(self, dtype: Dtype) -> float:
        """Return the FLOP per second of products of a dtype."""
        return self.float_rate if dtype == "fp32" else self.tensor_rate


DEVICES = {
    "A100": Device("A100", (8, 0), 108, 2.039e12, 312e12, 19.5e12, 40 << 20),
    "H100": Device("H100", (9, 0), 132, 3.35e12, 989.4e12, 66.9e12, 50 << 20),
    "H200": Device("H200", (9, 0), 132, 4.8e12, 989.4e12, 66.9e12, 50 << 20),
    "B200": Device("B200", (10, 0), 148, 8.0e12, 2250e12, 75e12, 126 << 20),
}


def find_device(name: str, capability: tuple[int, int]) -> Device:
    """Return the device whose name is a word of CUDA's `name`, else one of its generation."""
    for known in DEVICES.values():
        if re.search(rf"\b{known.name}\b", name):
            return known
    return DEVICES["B200" if capability >= (10, 0) else "H100" if capability >= (9, 0) else "A100"]


LAUNCH_SECONDS = 3e-6
CHAIN_SECONDS = 0.4e-6
_INDEX, _STATISTIC, _LSE = 8, 4, 8  # bytes of an int64, a float32, a float64
MERGED_ROWS, MERGED_PARTS = 16, 64  # read at a time by a program of the merge


@dataclass(frozen=True)
class Cost:
    """Cost of one kernel, all of its launches together."""

    name: str
    launches: int
    loaded: int
    stored: int
    memory: int
    flop: int
    seconds: float

    @property
    def requested(self) -> int:
        """Bytes of all loads and stores."""
        return self.loaded + self.stored


def floor_bytes(problem: Problem, *, with_gradient: bool = True) -> int:
    """Minimum bytes of any plan: banks (the student's twice), embeddings, gradient."""
    p, size = problem, ITEMSIZE[problem.dtype]
    teacher_bank = 0 if p.one_bank else p.n * p.Dt  # one bank is read for both
    loss = size * (teacher_bank + p.n * p.Ds + p.B * (p.Dt + p.Ds))
    return loss + (size * p.n * p.Ds + 4 * p.B * p.Ds if with_gradient else 0)


def floor_flop(problem: Problem, *, with_gradient: bool = True) -> int:
    """Minimum FLOP of any plan: 2 B n (Dt + 2 Ds), without gradient 2 B n (Dt + Ds)."""
    student = 2 * problem.Ds if with_gradient else problem.Ds
    return 2 * problem.B * problem.n * (problem.Dt + student)


def floor_seconds(problem: Problem, device: Device, *, with_gradient: bool = True) -> float:
    """Minimum time of any plan, without launches: memory or arithmetic, whichever is longer."""
    num_bytes = floor_bytes(problem, with_gradient=with_gradient)
    flop = floor_flop(problem, with_gradient=with_gradient)
    return max(num_bytes / device.bandwidth, flop / device.rate(problem.dtype))


def costs(plan: Plan, problem: Problem, device: Device) -> list[Cost]:
    """Return the costs of first pass, merge, second pass, and the sum of shares and rows."""
    chunks = []
    for start in range(0, problem.n, plan.chunk):
        count = _Count(plan, problem, min(plan.chunk, problem.n - start), device)
        chunks.append([count.first(), count.merge(), count.second(), count.finish()])
    return [_total(kernel) for kernel in zip(*chunks, strict=True)]


def predicted_seconds(plan: Plan, problem: Problem, device: Device) -> float:
    """Return the time of a plan."""
    return sum(cost.seconds for cost in costs(plan, problem, device))


def _total(costs: tuple[Cost, ...]) -> Cost:
    numbers = [astuple(cost)[1:] for cost in costs]
    return Cost(costs[0].name, *map(sum, zip(*numbers, strict=True)))


class _Count:
    """Counts the kernels of one chunk of n anchors."""

    def __init__(self, plan: Plan, problem: Problem, n: int, device: Device) -> None:
        self.plan, self.problem, self.n, self.device = plan, problem, n, device
        self.R, self.N, self.C = plan.padded(problem, n)
        self.size = ITEMSIZE[problem.dtype]
        self.record_size = 4 if problem.dtype == "fp32" else 2
        self.index_size = _INDEX if problem.has_mask else 0
        self.num_parts = self.N // plan.first.block_s

    def first(self) -> Cost:
        p, tile = self.problem, self.plan.first
        row_tiles, tiles = self.R // tile.block_b, self.N // tile.block_k
        programs, parts = row_tiles * tiles, tile.block_k // tile.block_s
        index = self.index_size
        entries = tile.block_b * tile.block_k
        if p.one_bank:
            loaded = self.size * p.Dt * (2 * tile.block_b + tile.block_k)
            loaded += index * (tile.block_b + tile.block_k)
        else:
            loaded = self.size * p.Dt * (tile.block_b + tile.block_k)
            loaded += parts * self.size * p.Ds * (tile.block_b + tile.block_s)
            loaded += index * (tile.block_b + tile.block_k + parts * (tile.block_b + tile.block_s))
            loaded += self.record_size * entries
        stored = self.plan.num_records * self.record_size * entries
        stored += _STATISTIC * tile.block_b * (1 + 4 * parts)
        waves = -(-row_tiles // self.device.num_sms)
        embeddings = self.size * p.B * (p.Dt + p.Ds)
        banks = self.size * self.n * (p.Dt if p.one_bank else p.Dt + p.Ds)
        again = 1 if self._stays(embeddings) else -(-programs // self.device.num_sms)
        memory = waves * banks + again * embeddings + self._record_memory()
        flop = 2 * self.R * self.N * (round_up(p.Dt, tile.block_d) + round_up(p.Ds, tile.block_d))
        return self._cost("first pass", programs * loaded, programs * stored, memory, flop)

    def merge(self) -> Cost:
        B = self.problem.B
        parts = round_up(self.num_parts, MERGED_PARTS)
        loaded = 7 * _STATISTIC * parts * round_up(B, MERGED_ROWS)
        memory = 0 if self._stays(loaded) else loaded
        return self._cost("merge", loaded, 3 * _LSE * B, memory, 0)

    def second(self) -> Cost:
        p, tile, plan = self.problem, self.plan.second, self.plan
        row_tiles, column_tiles = self.R // tile.block_b, self.C // tile.block_c
        sweeps = row_tiles * column_tiles * plan.sides
        recomputes = plan.record == "teacher"
        num_tiles = -(-self.n // tile.block_n)
        records = 2 if plan.record == "both" else 1
        loaded = sweeps * plan.num_shares * 2 * _LSE * tile.block_b
        per_row = records * (self.record_size * tile.block_n + _STATISTIC)
        loaded += sweeps * num_tiles * tile.block_b * per_row
        loaded += row_tiles * plan.sides * num_tiles * tile.block_n * self.size * p.Ds
        products = column_tiles * tile.block_c
        flop = plan.sides * 2 * self.R * num_tiles * tile.block_n * products
        if recomputes:
            loaded += plan.num_shares * row_tiles * self.size * tile.block_b * p.Ds
            loaded += self.index_size * sweeps * num_tiles * (tile.block_b + tile.block_n)
            flop *= 2
        stored = sweeps * plan.num_shares * 4 * tile.block_b * tile.block_c
        waves = -(-sweeps // self.device.num_sms)
        memory = waves * (self.size * self.n * p.Ds + self._record_memory())
        memory += 0 if self._stays(stored) else stored
        chain = 0.0
        if recomputes:
            programs = sweeps * plan.num_shares
            chain = CHAIN_SECONDS * num_tiles * sweeps / min(programs, self.device.num_sms)
        return self._cost("second pass", loaded, stored, memory, flop, chain=chain)

    def finish(self) -> Cost:
        """PyTorch's sum of the shares and mean over the rows."""
        p = self.problem
        partial = 4 * self.plan.sides * self.plan.num_shares * p.B * p.Ds
        gradient = 4 * p.B * p.Ds
        memory = gradient + (0 if self._stays(partial) else partial)
        cost = self._cost("sum of shares", partial + 3 * _LSE * p.B, gradient, memory, 0)
        return Cost(
            cost.name, 2, cost.loaded, cost.stored, cost.memory, 0, cost.seconds + LAUNCH_SECONDS
        )

    def _cost(
        self, name: str, loaded: int, stored: int, memory: int, flop: int, *, chain: float = 0.0
    ) -> Cost:
        busy = max(memory / self.device.bandwidth, flop / self.device.rate(self.problem.dtype))
        return Cost(name, 1, loaded, stored, memory, flop, busy + chain + LAUNCH_SECONDS)

    def _stays(self, num_bytes: int) -> bool:
        return num_bytes <= self.device.l2_bytes // 2

    def _record_memory(self) -> int:
        num_bytes = self.plan.num_records * self.record_size * self.R * self.N
        return 0 if self._stays(num_bytes) else num_bytes
