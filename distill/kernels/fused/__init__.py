"""The anchor KL in Triton: similarities, softmaxes, the loss and its gradient, fused.

This module checks whether the kernels can run, without importing Triton. Limits: NVIDIA GPUs from
compute capability 8.0, or Triton's interpreter on a CPU (TRITON_INTERPRET=1 in the environment
before Python starts).
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from distill.errors import DistillError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unavailable_reason(bank: Tensor) -> str | None:
    """Return why the fused kernels cannot run on a bank; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if bank.dtype not in DTYPES:
        return f"the banks are {bank.dtype} and it supports float32, bfloat16 and float16"
    if bank.device.type == "cpu" and interpreted():
        return None
    if bank.device.type != "cuda":
        return f"the operands are on {bank.device} and it needs a CUDA device"
    capability = torch.cuda.get_device_capability(bank.device)
    if capability < (8, 0):
        return f"the device has compute capability {'.'.join(map(str, capability))}, it needs 8.0"
    return None


def preferred(bank: Tensor) -> bool:
    """Return whether "auto" means the fused kernels: on CUDA, as the interpreter is for tests."""
    return bank.is_cuda and unavailable_reason(bank) is None


def require(bank: Tensor) -> None:
    """Raise `DistillError` if the fused kernels cannot run on a bank."""
    reason = unavailable_reason(bank)
    if reason is not None:
        raise DistillError(
            f"the loss implementation triton cannot run: {reason}; use auto, which picks another"
        )


def interpreted() -> bool:
    """Return whether Triton runs kernels in its interpreter in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"
