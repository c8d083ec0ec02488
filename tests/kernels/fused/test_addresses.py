"""Addresses beyond 32 bits: banks and records of more than 2^31 numbers, none of them allocated."""

import numpy as np
import pytest
import torch
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

from distill.kernels.fused.kernels import first_pass, second_pass

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="addresses are looked at in the interpreter"
)
WIDE = 1 << 27  # columns: row 63 begins beyond 2^32, which no 32-bit product can say
SHARED = {"HAS_MASK": False, "PRECISION": "ieee", "ROWS": 64, "BLOCK_K": 64, "BLOCK_S": 64}


@pytest.fixture
def loads(monkeypatch):
    """Return the spans of numbers that a kernel would load first; nothing is read."""
    spans: list[int] = []

    def noted(builder, ptrs, mask, *rest):
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        spans.append((int(ptrs.data.max()) - int(ptrs.data.min())) // size)
        if len(spans) == 6:
            raise StopIteration
        kind = interpreter._get_np_dtype(ptrs.get_element_ty())
        return interpreter.TensorHandle(np.zeros(ptrs.data.shape, kind), ptrs.get_element_ty())

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", noted)

    def run(kernel, num_programs: int, *args, **constants) -> list[int]:
        with pytest.raises(InterpreterError, match="StopIteration"):  # in the first program
            kernel[(num_programs,)](*args, **SHARED, **constants)
        return spans

    return run


def test_wide_banks_in_the_first_pass(loads):
    x, index = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    blocks = {"BLOCK_B": 64, "BLOCK_D": 16}
    flags = {"ONE_BANK": False, "RECORD_STUDENT": True, "EVEN": True}
    operands = (x, x, x, x, index, index, x, x, x)
    spans = loads(first_pass, 1, *operands, 64, 64, WIDE, WIDE, 1.0, 1.0, **flags, **blocks)
    assert spans[:2] == [63 * WIDE + 15] * 2  # rows and anchors


def test_wide_banks_and_a_long_record_in_the_second_pass(loads):
    x, index = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    lse = torch.zeros(2, 64, dtype=torch.float64)
    blocks = {"BLOCK_B": 64, "BLOCK_N": 64, "BLOCK_C": 16}
    flags = {"SIDES": 1, "RECOMPUTE": False, "WEIGHT": 1.0}
    operands = (x, x, x, lse, x, x, index, index, x)
    spans = loads(second_pass, WIDE // 16, *operands, 64, WIDE, WIDE, 1.0, 1, **flags, **blocks)
    assert spans[2] == 63 * WIDE + 15  # anchors; before them the log-sum-exps
    assert 63 * WIDE + 63 in spans[3:]  # a tile of the record
