"""The counted bytes against what the interpreter loads and stores, and the model's arithmetic."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from distill.kernels.fused import kernels as first_pass
from distill.kernels.fused import scan
from distill.kernels.fused.cost import DEVICES, costs, floor_bytes, floor_flop, floor_seconds
from distill.kernels.fused.plan import FirstTile, Plan, Problem, SecondTile

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="loads and stores are counted in the interpreter"
)
FIRST, SECOND = FirstTile(32, 64, 32, 16, 4, 1), SecondTile(16, 16, 32, 4, 1)
CASES = {
    "both": (Problem(37, 200, 40, 24, "bf16"), Plan("both", FIRST, SECOND, 3, 200)),
    "masked": (
        Problem(37, 200, 40, 24, "fp16", has_mask=True),
        Plan("both", FIRST, SECOND, 3, 200),
    ),
    "teacher": (
        Problem(37, 200, 40, 24, "bf16", has_mask=True),
        Plan("teacher", FIRST, SECOND, 3, 200),
    ),
    "one bank": (
        Problem(37, 200, 40, 40, "bf16", one_bank=True, has_mask=True),
        Plan("both", FirstTile(32, 64, 64, 16, 4, 1), SECOND, 2, 200),
    ),
    "taller second pass": (
        Problem(20, 200, 40, 24, "bf16"),
        Plan("both", FirstTile(16, 64, 64, 16, 4, 1), SecondTile(64, 32, 32, 4, 1), 2, 200),
    ),
    "chunks": (Problem(37, 200, 40, 24, "fp32"), Plan("chunks", FIRST, SECOND, 2, 128)),
}


class Traffic:
    """Counts the bytes that kernels ask for, as the interpreter carries them out."""

    def __init__(self, monkeypatch) -> None:
        self.loaded = self.stored = 0
        builder = interpreter.InterpreterBuilder
        load, store = builder.create_masked_load, builder.create_masked_store

        def counted_load(builder, ptrs, mask, *rest):
            self.loaded += self._bytes(ptrs, mask)
            return load(builder, ptrs, mask, *rest)

        def counted_store(builder, ptrs, value, mask, *rest):
            self.stored += self._bytes(ptrs, mask)
            return store(builder, ptrs, value, mask, *rest)

        monkeypatch.setattr(builder, "create_masked_load", counted_load)
        monkeypatch.setattr(builder, "create_masked_store", counted_store)

    @staticmethod
    def _bytes(ptrs, mask) -> int:
        inside = np.broadcast_to(mask.data, ptrs.data.shape)
        return int(inside.sum()) * ptrs.get_element_ty().primitive_bitwidth // 8


def run(problem: Problem, plan: Plan) -> None:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[problem.dtype]
    p = problem
    teacher, student = torch.randn(p.B, p.Dt), torch.randn(p.B, p.Ds)
    bank = torch.randn(p.n, p.Dt).to(dtype)
    banks = (bank, bank if p.one_bank else torch.randn(p.n, p.Ds).to(dtype))
    mask = (torch.arange(p.B), torch.arange(p.n)) if p.has_mask else None
    scanned = scan.FusedScan(
        teacher, student, *banks, temperatures=(1.0, 1.0), self_mask=mask, plan=plan
    )
    scanned.gradient(scanned.statistics[:2])


def counted(problem: Problem, plan: Plan) -> tuple[int, int]:
    kernels = costs(plan, problem, DEVICES["H100"])[:3]  # PyTorch's sums are not interpreted
    return sum(k.loaded for k in kernels), sum(k.stored for k in kernels)


@pytest.mark.parametrize("case", CASES)
def test_requested_bytes_are_those_of_the_kernels(case, monkeypatch):
    traffic = Traffic(monkeypatch)
    run(*CASES[case])
    assert (traffic.loaded, traffic.stored) == counted(*CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_no_address_is_outside_its_tensor(case, monkeypatch):
    """Beyond the last row, column or anchor nothing is touched, even if it would not matter."""
    spans, empty = [], torch.empty

    def noted(tensor):
        spans.append((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes))
        return tensor

    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: noted(empty(*args, **kwargs)))
    init = scan.FusedScan._first_pass

    def with_operands(self, start, stop):
        for tensor in (*self._rows, *self._banks, *(self._mask or ())):
            noted(tensor)
        return init(self, start, stop)

    monkeypatch.setattr(scan.FusedScan, "_first_pass", with_operands)
    gradient = scan.FusedScan.gradient
    monkeypatch.setattr(
        scan.FusedScan, "gradient", lambda self, lse: gradient(self, noted(lse.contiguous()))
    )
    builder = interpreter.InterpreterBuilder
    for name, place_of_mask in (("create_masked_load", 0), ("create_masked_store", 1)):
        original = getattr(builder, name)

        def checked(builder, ptrs, *rest, original=original, at=place_of_mask):
            inside = np.broadcast_to(rest[at].data, ptrs.data.shape)
            places = ptrs.data[inside].astype(np.int64)
            if places.size:
                size = ptrs.get_element_ty().primitive_bitwidth // 8
                first, last = int(places.min()), int(places.max()) + size
                assert any(low <= first and last <= high for low, high in spans)
            return original(builder, ptrs, *rest)

        monkeypatch.setattr(builder, name, checked)
    run(*CASES[case])


@triton.jit
def _columns_twice(rows, column, width, EVEN: tl.constexpr):
    place = rows[:, None] + column[None, :]
    inside = (column < width)[None, :]
    tl.load(place, mask=inside, other=0.0)
    return tl.load(place, mask=inside, other=0.0)


def test_an_extra_load_shows(monkeypatch):
    monkeypatch.setattr(first_pass, "_columns", _columns_twice)
    traffic = Traffic(monkeypatch)
    run(*CASES["both"])
    assert traffic.loaded > counted(*CASES["both"])[0]


def test_the_floor():
    problem = Problem(256, 128_000, 8192, 512, "bf16")
    embeddings = 256 * (8192 + 512) * 2 + 256 * 512 * 4
    assert floor_bytes(problem) == 128_000 * (8192 + 2 * 512) * 2 + embeddings
    assert floor_flop(problem) == 2 * 256 * 128_000 * (8192 + 2 * 512)
    assert floor_seconds(problem, DEVICES["H100"]) == floor_bytes(problem) / 3.35e12
    assert floor_seconds(problem, DEVICES["A100"]) == floor_flop(problem) / 312e12


def test_one_bank_is_read_twice_not_thrice():
    problem = Problem(256, 128_000, 2048, 2048, "bf16", one_bank=True)
    banks = floor_bytes(problem) - 2 * 256 * 2048 * 2 - 4 * 256 * 2048
    assert banks == 2 * 128_000 * 2048 * 2


def test_memory_bytes_follow_the_stated_cache():
    """At the published size: banks once per pass, the record written and read, no statistics."""
    problem = Problem(256, 128_000, 8192, 512, "bf16")
    plan = Plan(
        "both", FirstTile(128, 256, 64, 64, 8, 3), SecondTile(128, 64, 256, 8, 3), 33, 128_000
    )
    first, merge, second, _ = costs(plan, problem, DEVICES["H100"])
    record = 2 * 2 * 256 * 128_000
    embeddings = 2 * 256 * (8192 + 512)
    assert first.memory == 2 * 128_000 * (8192 + 512) + embeddings + record
    assert merge.memory == 0
    assert second.memory == 2 * 128_000 * 512 + record
