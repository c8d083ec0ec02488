"""Refuses sizes, batches and saved states that an anchor queue cannot use, one sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distill.anchors.shards import num_held
from distill.errors import DistillError

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_sizes(size: int, teacher_dim: int, student_dim: int | None, dtype: torch.dtype) -> None:
    """Raise `DistillError` unless a queue can have these sizes and this dtype."""
    named = {"size": size, "teacher_dim": teacher_dim, "student_dim": student_dim}
    for name, value in named.items():
        if value is not None and value < 1:
            raise DistillError(f"the queue's {name} is {value}; it must be at least 1")
    if dtype not in DTYPES:
        allowed = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
        raise DistillError(f"the queue's dtype is {dtype}; it must be one of {allowed}")


def check_batch(batch: Sequence[Tensor | None], image_index: Tensor, banks: list[Tensor]) -> None:
    """Raise `DistillError` unless rows for each bank and image indices fit; see `enqueue`."""
    num_rows = len(image_index)
    if image_index.ndim != 1 or image_index.dtype != torch.int64:
        raise DistillError(
            f"image_index is {image_index.dtype} of shape {tuple(image_index.shape)}; it must "
            "be int64 with one entry per row"
        )
    for name, bank, rows in zip(("teacher", "student"), banks, batch, strict=False):
        shape = None if rows is None else tuple(rows.shape)
        if shape != (num_rows, bank.shape[1]):
            raise DistillError(
                f"{name} has shape {shape}; {num_rows} image indices and a bank of width "
                f"{bank.shape[1]} want {(num_rows, bank.shape[1])}"
            )


def check_states(shards: Sequence[dict[str, Any]], own: dict[str, Any], *, size: int) -> None:
    """Raise `DistillError` unless these are all shards of one queue like this one.

    Args:
        shards: The saved states, in the order of the ranks.
        own: State of the queue that is to be restored, of one rank.
        size: K of that queue.
    """
    for rank, state in enumerate(shards):
        if state.keys() != own.keys():
            raise DistillError(
                f"the queue's state holds {sorted(state)}; it must hold {sorted(own)}"
            )
        n = num_held(size, (rank, len(shards)))
        sizes_fit = all(len(tensor) == n for tensor in tensors_of(state))
        if not sizes_fit or _row_types(state) != _row_types(own):
            saved = sum(len(shard["image_index"]) for shard in shards)
            raise DistillError(
                f"the saved queue has banks {describe(saved, state['banks'])}, this one "
                f"{describe(size, own['banks'])}; build it with the saved size, widths and dtype"
            )
    moments = {(state["pointer"], state["num_real"]) for state in shards}
    if len(moments) != 1:
        raise DistillError(
            f"the {len(shards)} shards of the saved queue were written at different steps; use "
            "those of one checkpoint"
        )
    pointer, num_real = moments.pop()
    if not (0 <= pointer < size and 0 <= num_real <= size):
        raise DistillError(
            f"the queue's state has pointer {pointer} and {num_real} real anchors; neither "
            f"fits a queue of {size}"
        )


def tensors_of(state: dict[str, Any]) -> list[Tensor]:
    """Return the tensors of a queue's state: its banks and its image indices."""
    return [*state["banks"], state["image_index"]]


def describe(size: int, banks: list[Tensor]) -> str:
    """Say in words what a queue of `size` anchors with such banks is."""
    return " and ".join(
        f"{size} x {bank.shape[1]} {str(bank.dtype).removeprefix('torch.')}" for bank in banks
    )


def _row_types(state: dict[str, Any]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape[1:], tensor.dtype) for tensor in tensors_of(state)]
