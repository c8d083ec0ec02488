"""Patches the products of Triton's interpreter, which runs the kernels on a CPU for tests.

The interpreter of Triton 3.9 multiplies bfloat16 numbers as 16-bit integers, and float16 without
BLAS. A GPU multiplies both exactly and accumulates in float32, so operands are converted to float32
first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def repair() -> None:
    """Patch the interpreter; may be called again."""
    interpreter.InterpreterBuilder.create_dot = _dot


def _dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
    product = np.matmul(_widened(a), _widened(b))
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


def _widened(operand: Any) -> np.ndarray:
    if operand.dtype.scalar == tl.bfloat16:
        bits = operand.data.view(np.uint16).astype(np.uint32)
        return (bits << 16).view(np.float32)
    return operand.data.astype(np.float32)
