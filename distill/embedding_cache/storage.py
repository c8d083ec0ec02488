"""How embeddings are stored: float32 in, fp16, bf16 or fp32 on the disk, float32 out.

NumPy has no bfloat16: its bits are stored as uint16. Deliberate limit: little-endian, as the
machines are that PyTorch runs on.

Shapes: B rows, D embedding width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distill.config import CacheDtype

_TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_NUMPY = {"fp16": "<f2", "bf16": "<u2", "fp32": "<f4"}


def array_dtype(dtype: CacheDtype) -> np.dtype:
    """Return the dtype of the array on the disk."""
    return np.dtype(_NUMPY[dtype])


def encode(rows: np.ndarray, dtype: CacheDtype) -> np.ndarray:
    """Round embeddings to what is stored.

    Args:
        rows: (B, D) float32.
        dtype: Of the storage.

    Returns:
        (B, D) of `array_dtype(dtype)`; what is too large for it is infinite, see `first_misfit`.
    """
    rounded = torch.from_numpy(rows).to(_TORCH[dtype])
    return (rounded.view(torch.uint16) if dtype == "bf16" else rounded).numpy()


def decode(stored: np.ndarray, dtype: CacheDtype) -> Tensor:
    """Return what `encode` was given, (B, D) float32 in memory of its own, as far as it was kept.

    Args:
        stored: (B, D) of `array_dtype(dtype)`, writable.
        dtype: Of the storage.
    """
    bits = torch.from_numpy(stored)
    rows = bits.view(torch.bfloat16) if dtype == "bf16" else bits
    return rows.to(torch.float32)


def first_misfit(rows: np.ndarray, dtype: CacheDtype) -> tuple[int, int] | None:
    """Return row and column of the first value that is not finite when stored, None when all are.

    Args:
        rows: (B, D) float32.
        dtype: Of the storage.
    """
    limit = torch.finfo(_TORCH[dtype]).max
    if rows.size == 0:
        return None
    low, high = torch.aminmax(torch.from_numpy(rows))  # NaN when there is one
    if -limit <= low and high <= limit:
        return None
    misfits = torch.nonzero(~torch.isfinite(decode(encode(rows, dtype), dtype)))
    # A value just above the limit may be rounded to it.
    return None if len(misfits) == 0 else (int(misfits[0, 0]), int(misfits[0, 1]))


def no_rows(num_rows: int, width: int, dtype: CacheDtype) -> np.ndarray:
    """Return rows of NaN, which stand for images that could not be read."""
    return encode(np.full((num_rows, width), np.nan, np.float32), dtype)


def missing_rows(stored: np.ndarray, dtype: CacheDtype) -> np.ndarray:
    """Return the numbers int64 of the rows that `no_rows` left."""
    first = decode(np.array(stored[:, :1]), dtype)[:, 0]
    return np.flatnonzero(torch.isnan(first).numpy())
