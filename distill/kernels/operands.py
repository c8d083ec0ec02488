"""Refuses operands that the anchor KL cannot use, one sentence each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from distill import distributed
from distill.errors import DistillError

BANK_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_operands(
    teacher: Tensor,
    student: Tensor,
    teacher_anchors: Tensor,
    student_anchors: Tensor,
    row_counts: Sequence[int] | None = None,
) -> None:
    """Raise `DistillError` unless embeddings and banks fit each other; see `anchor_kl`."""
    named = {
        "teacher": teacher,
        "student": student,
        "teacher_anchors": teacher_anchors,
        "student_anchors": student_anchors,
    }
    for name, tensor in named.items():
        # A rank may have no row of the batch, or no anchor yet.
        needed = tensor.shape[1:] if row_counts and tensor is not teacher else tensor.shape
        if tensor.ndim != 2 or 0 in needed:
            raise DistillError(
                f"{name} has shape {tuple(tensor.shape)}; it must be a matrix with at least one "
                "row and one column"
            )
        if not tensor.is_floating_point():
            raise DistillError(f"{name} is {tensor.dtype}; it must hold floating-point numbers")
        if tensor.device != student.device:
            raise DistillError(
                f"{name} is on {tensor.device} and student on {student.device}; move them together"
            )
    if row_counts is None:
        _check_equal("rows", 0, teacher=teacher, student=student)
    else:
        _check_row_counts(teacher, student, row_counts)
    _check_equal("rows", 0, teacher_anchors=teacher_anchors, student_anchors=student_anchors)
    _check_equal("columns", 1, teacher=teacher, teacher_anchors=teacher_anchors)
    _check_equal("columns", 1, student=student, student_anchors=student_anchors)
    dtypes = (teacher_anchors.dtype, student_anchors.dtype)
    if dtypes[0] not in BANK_DTYPES or dtypes[0] != dtypes[1]:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in BANK_DTYPES)
        raise DistillError(
            f"teacher_anchors are {dtypes[0]} and student_anchors {dtypes[1]}; both must have one "
            f"dtype out of {allowed}"
        )


def _check_row_counts(teacher: Tensor, student: Tensor, row_counts: Sequence[int]) -> None:
    found, wanted = (len(teacher), len(student)), (sum(row_counts), row_counts[distributed.rank()])
    if found != wanted:
        raise DistillError(
            f"teacher has {found[0]} rows and student {found[1]}; over ranks with "
            f"{list(row_counts)} rows rank {distributed.rank()} must bring {wanted[0]} (of all "
            f"ranks) and {wanted[1]} (its own)"
        )


def _check_equal(what: str, axis: int, **pair: Tensor) -> None:
    (first, a), (second, b) = pair.items()
    if a.shape[axis] != b.shape[axis]:
        raise DistillError(
            f"{first} has shape {tuple(a.shape)} and {second} {tuple(b.shape)}; they must have "
            f"equally many {what}"
        )


def check_temperature(name: str, temperature: float) -> None:
    """Raise `DistillError` unless a temperature is positive and finite."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise DistillError(f"{name} is {temperature}; it must be positive and finite")


def check_num_real(num_real: int, anchors: Tensor) -> None:
    """Raise `DistillError` unless so many of the anchors (K x D) can be the real ones."""
    if not 1 <= num_real <= len(anchors):
        raise DistillError(f"num_real is {num_real}; it must be from 1 to {len(anchors)}")


def check_mask(mask: tuple[Tensor, Tensor], teacher: Tensor, anchors: Tensor) -> None:
    """Raise `DistillError` unless a self-mask fits embeddings and bank; see `anchor_kl`."""
    for name, index, owner in zip(
        ("image_index", "anchor_index"), mask, (teacher, anchors), strict=True
    ):
        if index.shape != owner.shape[:1] or index.dtype != torch.int64:
            raise DistillError(
                f"self_mask's {name} is {index.dtype} of shape {tuple(index.shape)}; it must be "
                f"int64 of shape {tuple(owner.shape[:1])}"
            )
        if index.device != owner.device:
            raise DistillError(
                f"self_mask's {name} is on {index.device} and the embeddings on {owner.device}; "
                "move them together"
            )
