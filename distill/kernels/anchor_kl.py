"""The anchor KL: the divergence between the teacher's and the student's anchor similarities.

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020. With anchors A_t (K x Dt), A_s (K x Ds):

    p_i = softmax_j(t_i . A_t[j] / tau_t)    q_i = softmax_j(s_i . A_s[j] / tau_s)
    loss = (1 / B) sum_i KL(p_i || q_i)      d loss / d s_i = sum_j (q_ij - p_ij) A_s[j] / (B tau_s)

This module checks the operands, picks an implementation and connects it to autograd. The
implementations are `reference.py` (float64, as in the paper), `blocked.py` (any device) and
`fused/` (CUDA, in Triton); `scan.py` runs either of the last two with anchors sharded over ranks.

Limits: differentiable once, in the student only; the caller normalizes the rows.
Shapes: B rows of the batch, b of them on this rank, K anchors, Dt and Ds widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill import distributed
from distill.errors import DistillError, UnknownNameError
from distill.kernels import fused
from distill.kernels.blocked import BlockedScan
from distill.kernels.reference import reference_anchor_kl
from distill.kernels.scan import Scan, ShardedScan, divergence


def anchor_kl(
    teacher: Tensor,
    student: Tensor,
    teacher_anchors: Tensor,
    student_anchors: Tensor,
    *,
    teacher_temperature: float = 0.04,
    student_temperature: float = 0.04,
    self_mask: tuple[Tensor, Tensor] | None = None,
    num_valid: int | None = None,
    implementation: str = "auto",
    row_counts: Sequence[int] | None = None,
) -> Tensor:
    """Return the batch mean of KL(p || q) over the anchors, in nats.

    Anchors may be sharded over ranks (`row_counts`). Then all ranks call this together, each with
    its shard of the banks, which may be empty; at least one rank has anchors.

    Args:
        teacher: Teacher embeddings, B x Dt, any float dtype; without gradient. With sharded
            anchors, the rows of all ranks.
        student: Student embeddings, B x Ds, any float dtype; the gradient flows to it. With sharded
            anchors, the rows of this rank, b x Ds, b >= 0.
        teacher_anchors: Teacher's bank, K x Dt, float32, bfloat16, float16 or float64.
        student_anchors: Student's bank, K x Ds, same dtype. Pass the same tensor as
            `teacher_anchors` if both sides share one bank, which is then read once.
        teacher_temperature: tau_t, > 0.
        student_temperature: tau_s, > 0.
        self_mask: Image index of each row (B, int64, >= 0) and of each anchor (K, int64, -1 for no
            image). Where they are equal, the anchor is excluded from both softmaxes of the row. A
            row whose anchors are all excluded adds 0 to the sum and has no gradient.
        num_valid: Use only the first `num_valid` anchors, 1 to K; None: all.
        implementation: One of `IMPLEMENTATIONS`; "auto" picks the fastest available one.
        row_counts: Rows of the batch on every rank, if the anchors are sharded over ranks; None if
            the banks have all anchors.

    Returns:
        The loss, 0-d float32; with sharded anchors the same on every rank, with the gradient as
        described in `distill.distributed`.

    Raises:
        DistillError: A shape, dtype, device or temperature is not valid, the implementation is
            unknown, or it is the reference and the anchors are sharded.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> anchors, rows = normalize(torch.eye(4)), normalize(torch.eye(4)[:2])
        >>> anchor_kl(rows, rows, anchors, anchors)  # the student agrees with the teacher
        tensor(0.)
    """
    check_implementation(implementation, sharded=row_counts is not None)
    _check_operands(teacher, student, teacher_anchors, student_anchors, row_counts)
    check_temperature("teacher_temperature", teacher_temperature)
    check_temperature("student_temperature", student_temperature)
    if self_mask is not None:
        _check_mask(self_mask, teacher, student_anchors)
    banks = (teacher_anchors, student_anchors)
    if num_valid is not None:
        if not 1 <= num_valid <= len(student_anchors):
            raise DistillError(
                f"num_valid is {num_valid}; it must be from 1 to {len(student_anchors)}"
            )
        teacher_bank = teacher_anchors[:num_valid]
        is_shared = teacher_anchors is student_anchors  # then both views are one object, too
        banks = (teacher_bank, teacher_bank if is_shared else student_anchors[:num_valid])
        self_mask = self_mask and (self_mask[0], self_mask[1][:num_valid])
    temperatures = (float(teacher_temperature), float(student_temperature))
    options: dict[str, Any] = {"temperatures": temperatures, "self_mask": self_mask}
    # The dtypes of the operands decide the precision, not a surrounding autocast region.
    with torch.autocast(student.device.type, enabled=False):
        if implementation == "reference":
            return reference_anchor_kl(teacher, student, *banks, **options)
        scan = _scan(implementation, student_anchors)
        if row_counts is not None:
            scan = partial(ShardedScan, scan, row_counts)
        scan = partial(scan, teacher, student, *banks, **options)
        if torch.is_grad_enabled() and student.requires_grad:
            return _ScanLoss.apply(student, scan, float(student_temperature))
        with torch.no_grad():
            return divergence(scan(with_gradient=False).statistics)


class _ScanLoss(torch.autograd.Function):
    """Connects autograd to a scan, which computes the gradient together with the loss."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, scan: Callable[..., Scan], temperature: float) -> Tensor:
        scanned = scan(with_gradient=True)
        gradient = scanned.gradient(scanned.statistics[:2])
        num_rows = scanned.statistics.shape[1]
        ctx.save_for_backward(gradient.mul_(1 / (num_rows * temperature)))
        ctx.student_dtype = student.dtype
        return divergence(scanned.statistics)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(ctx.student_dtype), None, None


IMPLEMENTATIONS = ("auto", "blocked", "reference", "triton")


def check_implementation(name: str, *, sharded: bool = False) -> None:
    """Raise `DistillError` for an unknown name, or the reference with sharded anchors."""
    if name not in IMPLEMENTATIONS:
        raise UnknownNameError("implementation", name, IMPLEMENTATIONS)
    if sharded and name == "reference":
        raise DistillError(
            "the reference loss needs all anchors on every rank and they are sharded over "
            f"{distributed.world_size()} ranks; use another loss implementation "
            "(--loss-implementation auto) or --queue-sharding none"
        )


def _scan(name: str, bank: Tensor) -> Callable[..., Scan]:
    if name == "triton":
        fused.require(bank)
    if name == "triton" or (name == "auto" and fused.preferred(bank)):
        from distill.kernels.fused.scan import FusedScan

        return FusedScan
    return BlockedScan


BANK_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _check_operands(
    teacher: Tensor,
    student: Tensor,
    teacher_anchors: Tensor,
    student_anchors: Tensor,
    row_counts: Sequence[int] | None,
) -> None:
    """Raise `DistillError` unless embeddings and banks match; see `anchor_kl`."""
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
            raise DistillError(f"{name} is {tensor.dtype}; it must have a floating-point dtype")
        if tensor.device != student.device:
            raise DistillError(
                f"{name} is on {tensor.device} and student on {student.device}; move both to one "
                "device"
            )
    if row_counts is None:
        _check_equal("rows", 0, teacher=teacher, student=student)
    else:
        rank = distributed.rank()
        expected = (sum(row_counts), row_counts[rank])
        if (len(teacher), len(student)) != expected:
            raise DistillError(
                f"teacher has {len(teacher)} rows and student {len(student)}; with "
                f"{list(row_counts)} rows on the ranks, rank {rank} must pass {expected[0]} (of "
                f"all ranks) and {expected[1]} (its own)"
            )
    _check_equal("rows", 0, teacher_anchors=teacher_anchors, student_anchors=student_anchors)
    _check_equal("columns", 1, teacher=teacher, teacher_anchors=teacher_anchors)
    _check_equal("columns", 1, student=student, student_anchors=student_anchors)
    dtypes = (teacher_anchors.dtype, student_anchors.dtype)
    if dtypes[0] not in BANK_DTYPES or dtypes[0] != dtypes[1]:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in BANK_DTYPES)
        raise DistillError(
            f"teacher_anchors are {dtypes[0]} and student_anchors {dtypes[1]}; both must have the "
            f"same dtype, one of {allowed}"
        )


def _check_equal(what: str, axis: int, **pair: Tensor) -> None:
    (first, a), (second, b) = pair.items()
    if a.shape[axis] != b.shape[axis]:
        raise DistillError(
            f"{first} has shape {tuple(a.shape)} and {second} {tuple(b.shape)}; they must have "
            f"the same number of {what}"
        )


def check_temperature(name: str, temperature: float) -> None:
    """Raise `DistillError` unless a temperature is positive and finite."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise DistillError(f"{name} is {temperature}; it must be positive and finite")


def _check_mask(mask: tuple[Tensor, Tensor], teacher: Tensor, anchors: Tensor) -> None:
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
                "move both to one device"
            )
