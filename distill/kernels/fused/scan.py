"""Runs the fused kernels: plans, allocates and launches, without waiting for the device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from distill.kernels.fused import interpreted
from distill.kernels.fused.cost import DEVICES, MERGED_PARTS, MERGED_ROWS, Device, find_device
from distill.kernels.fused.kernels import first_pass, merge, second_pass
from distill.kernels.fused.plan import Dtype, Plan, Problem
from distill.kernels.fused.tuning import choose, tuned_plan
from distill.kernels.scan import merged

if interpreted():
    from distill.kernels.fused import interpreter

    interpreter.repair()

DTYPE_NAMES: dict[torch.dtype, Dtype] = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


@dataclass(frozen=True)
class _Chunk:
    """Results of the first pass over a chunk of the anchors; see `first_pass` for the shapes."""

    start: int
    stop: int
    record: Tensor
    teacher_peaks: Tensor
    statistics: Tensor
    merged: Tensor


class FusedScan:
    """Both passes over the anchors; see `Scan`.

    Operands and masks as of `anchor_kl`; `temperatures` are the teacher's and the student's. With
    `with_gradient=False`, `gradient` must not be called. `plan=None` takes the plan measured on
    this device, else the one predicted to be fastest.
    """

    def __init__(
        self,
        teacher: Tensor,
        student: Tensor,
        teacher_anchors: Tensor,
        student_anchors: Tensor,
        *,
        temperatures: tuple[float, float],
        self_mask: tuple[Tensor, Tensor] | None = None,
        with_gradient: bool = True,
        plan: Plan | None = None,
    ) -> None:
        self._banks = (teacher_anchors.contiguous(), student_anchors.contiguous())
        dtype = teacher_anchors.dtype
        self._rows = (teacher.to(dtype).contiguous(), student.to(dtype).contiguous())
        self._scales = tuple(math.log2(math.e) / temperature for temperature in temperatures)
        self._mask = None if self_mask is None else tuple(i.contiguous() for i in self_mask)
        self.problem = Problem(
            B=len(teacher),
            n=len(student_anchors),
            Dt=teacher.shape[1],
            Ds=student.shape[1],
            dtype=DTYPE_NAMES[dtype],
            one_bank=teacher_anchors is student_anchors,
            has_mask=self_mask is not None,
        )
        self.plan = plan or plan_for(self.problem, student.device)
        self._with_gradient = with_gradient
        self._precision = _precision()
        with torch.cuda.device_of(student):  # Triton launches on the current device
            if self.plan.record == "chunks":
                self.statistics, self._sums = self._fold(with_gradient)
            else:
                self._chunk = self._first_pass(0, self.problem.n)
                self.statistics = self._chunk.merged

    def gradient(self, lse: Tensor) -> Tensor:
        """Return the gradient, float32; see `Scan`."""
        if self.plan.record == "chunks":
            assert self._sums is not None
            p, q = self._sums * _weight(self.statistics, lse)
            return q - p
        with torch.cuda.device_of(lse):
            return self._second_pass(self._chunk, lse)[0]

    def _fold(self, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Return statistics and sums, 2 x B x Ds, p and q normalized over the chunks so far."""
        statistics: Tensor | None = None
        sums: Tensor | None = None
        for start in range(0, self.problem.n, self.plan.chunk):
            chunk = self._first_pass(start, min(start + self.plan.chunk, self.problem.n))
            added = self._second_pass(chunk, chunk.merged[:2]) if with_gradient else None
            if statistics is None:
                statistics, sums = chunk.merged, added
                continue
            both = merged(torch.stack([statistics, chunk.merged]))
            if sums is not None and added is not None:
                sums = sums * _weight(statistics, both) + added * _weight(chunk.merged, both)
            statistics = both
        assert statistics is not None
        return statistics, sums

    def _first_pass(self, start: int, stop: int) -> _Chunk:
        p, tile, device = self.problem, self.plan.first, self._rows[0].device
        R, N, _ = self.plan.padded(p, stop - start)
        num_records = self.plan.num_records if self._with_gradient else 1
        dtype = torch.float32 if p.dtype == "fp32" else torch.float16
        record = torch.empty(num_records, R, N, dtype=dtype, device=device)
        teacher_peaks = torch.empty(N // tile.block_k, R, device=device)
        statistics = torch.empty(4, N // tile.block_s, R, device=device)
        output = torch.empty(3, p.B, dtype=torch.float64, device=device)
        first_pass[(R // tile.block_b * (N // tile.block_k),)](
            *self._rows,
            *(bank[start:stop] for bank in self._banks),
            *self._indices(start, stop),
            record,
            teacher_peaks,
            statistics,
            p.B,
            stop - start,
            p.Dt,
            p.Ds,
            *self._scales,
            ONE_BANK=p.one_bank,
            HAS_MASK=p.has_mask,
            RECORD_STUDENT=num_records == 2,
            EVEN=p.Dt % tile.block_d == 0 and p.Ds % tile.block_d == 0,
            PRECISION=self._precision,
            ROWS=self.plan.rows,
            BLOCK_B=tile.block_b,
            BLOCK_K=tile.block_k,
            BLOCK_S=tile.block_s,
            BLOCK_D=tile.block_d,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        merge[(-(-p.B // MERGED_ROWS),)](
            teacher_peaks,
            statistics,
            output,
            p.B,
            R,
            statistics.shape[1],
            PARTS=tile.block_k // tile.block_s,
            BLOCK_P=MERGED_PARTS,
            BLOCK_R=MERGED_ROWS,
        )
        return _Chunk(start, stop, record, teacher_peaks, statistics, output)

    def _second_pass(self, chunk: _Chunk, lse: Tensor) -> Tensor:
        """Return the sums of one chunk, sides x B x Ds."""
        p, plan, tile = self.problem, self.plan, self.plan.second
        n = chunk.stop - chunk.start
        R, _, C = plan.padded(p, n)
        num_tiles = -(-n // tile.block_n)
        per_share = -(-num_tiles // plan.num_shares)
        shape = (plan.sides, -(-num_tiles // per_share), R, C)  # the last chunk may need fewer
        partial = torch.empty(shape, device=lse.device)
        # Probabilities near 1 / n are below float16's normal range; times 2^15 they are not.
        weight = 2.0**15 if p.dtype == "fp16" else 1.0
        second_pass[(math.prod(shape[:2]) * (R // tile.block_b) * (C // tile.block_c),)](
            chunk.record,
            chunk.teacher_peaks,
            chunk.statistics[0],
            lse.contiguous(),
            self._rows[1],
            self._banks[1][chunk.start : chunk.stop],
            *self._indices(chunk.start, chunk.stop),
            partial,
            p.B,
            n,
            p.Ds,
            self._scales[1],
            per_share,
            ROWS=plan.rows,
            SIDES=plan.sides,
            RECOMPUTE=plan.record == "teacher",
            HAS_MASK=p.has_mask,
            WEIGHT=weight,
            PRECISION=self._precision,
            BLOCK_K=plan.first.block_k,
            BLOCK_S=plan.first.block_s,
            BLOCK_B=tile.block_b,
            BLOCK_N=tile.block_n,
            BLOCK_C=tile.block_c,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        sums = partial[:, :, : p.B, : p.Ds].sum(1)
        return sums if weight == 1.0 else sums.div_(weight)

    def _indices(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        if self._mask is None:  # never read
            return self._rows[0], self._rows[0]
        return self._mask[0], self._mask[1][start:stop]


def plan_for(problem: Problem, device: torch.device) -> Plan:
    """Return the plan measured on this device, else the predicted one."""
    known = device_on_paper(device)
    return tuned_plan(problem, known) or choose(problem, known)


@cache
def device_on_paper(device: torch.device) -> Device:
    """Return the data sheet of a CUDA device; an H100's for the interpreter."""
    if device.type != "cuda":
        return DEVICES["H100"]
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    return replace(
        find_device(properties.name, capability),
        name=properties.name,
        capability=capability,
        num_sms=properties.multi_processor_count,
    )


def _precision() -> str:
    """Return the precision of float32 products: TF32 only if PyTorch's setting allows it."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _weight(part: Tensor, whole: Tensor) -> Tensor:
    """Return the share of a part of the anchors in both softmaxes, 2 x B x 1, from statistics."""
    return (part[:2] - whole[:2]).exp().float()[..., None]
