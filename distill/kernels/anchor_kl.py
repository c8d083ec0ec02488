"""How alike teacher and student see an image: KL between their similarities to the anchors.

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020. With anchors A_t (K x Dt), A_s (K x Ds):

    p_i = softmax_j(t_i . A_t[j] / tau_t)    q_i = softmax_j(s_i . A_s[j] / tau_s)
    loss = (1 / B) sum_i KL(p_i || q_i)      d loss / d s_i = sum_j (q_ij - p_ij) A_s[j] / (B tau_s)

This file checks the operands, picks an implementation and joins it to autograd; the arithmetic is
in `reference.py` (float64, obvious) and `blocked.py` (any device). Limits: differentiable once, in
the student only; rows are used as given, so the caller normalizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill.errors import DistillError, UnknownNameError
from distill.kernels.blocked import BlockedScan
from distill.kernels.reference import reference_anchor_kl
from distill.kernels.scan import Scan, divergence

BANK_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def anchor_kl(
    teacher: Tensor,
    student: Tensor,
    teacher_anchors: Tensor,
    student_anchors: Tensor,
    *,
    teacher_temperature: float = 0.04,
    student_temperature: float = 0.04,
    self_mask: tuple[Tensor, Tensor] | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Return the batch mean of KL(p || q) over the anchors, in nats.

    Args:
        teacher: Teacher embeddings, B x Dt, any float dtype; a constant to autograd.
        student: Student embeddings, B x Ds, any float dtype; the gradient flows to it.
        teacher_anchors: Teacher's bank, K x Dt, float32, bfloat16, float16 or float64.
        student_anchors: Student's bank, K x Ds, of the same dtype. The same object as
            `teacher_anchors` when both sides share one bank, which is then read once.
        teacher_temperature: tau_t, > 0.
        student_temperature: tau_s, > 0.
        self_mask: Image index of each row (B, int64, >= 0) and of each anchor (K, int64, -1 for no
            image). Anchor j leaves both softmaxes of row i where they are equal; a row that loses
            every anchor adds 0 to the sum over the batch and has no gradient.
        implementation: One of `IMPLEMENTATIONS`; "auto" picks the fastest that can run.

    Returns:
        The loss, 0-d float32.

    Raises:
        DistillError: An operand's shape, dtype, device or temperature cannot be used, or the
            implementation is unknown.
    """
    loss = find_implementation(implementation)
    _check_operands(teacher, student, teacher_anchors, student_anchors)
    check_temperature("teacher_temperature", teacher_temperature)
    check_temperature("student_temperature", student_temperature)
    if self_mask is not None:
        _check_mask(self_mask, student, student_anchors)
    options = {
        "temperatures": (float(teacher_temperature), float(student_temperature)),
        "self_mask": self_mask,
    }
    # The operands' own precision counts here, not that of a surrounding autocast region.
    with torch.autocast(student.device.type, enabled=False):
        return loss(teacher, student, teacher_anchors, student_anchors, **options)


class _ScanLoss(torch.autograd.Function):
    """Joins autograd to a scan, which evaluates the gradient together with the loss."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, scan: Callable[..., Scan], temperature: float) -> Tensor:
        scanned = scan(with_gradient=True)
        gradient = scanned.gradient(scanned.statistics[:2])
        ctx.save_for_backward(gradient.mul_(1 / (len(student) * temperature)))
        ctx.student_dtype = student.dtype
        return divergence(scanned.statistics)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(ctx.student_dtype), None, None


def _by_scan(scan: Callable[..., Scan], *operands: Tensor, **options: Any) -> Tensor:
    student = operands[1]
    if torch.is_grad_enabled() and student.requires_grad:
        temperature = options["temperatures"][1]
        return _ScanLoss.apply(student, partial(scan, *operands, **options), temperature)
    with torch.no_grad():
        return divergence(scan(*operands, **options, with_gradient=False).statistics)


_TABLE: dict[str, Callable[..., Tensor]] = {
    "blocked": partial(_by_scan, BlockedScan),
    "reference": reference_anchor_kl,
}
IMPLEMENTATIONS = ("auto", *_TABLE)


def find_implementation(name: str) -> Callable[..., Tensor]:
    """Return what a name in `IMPLEMENTATIONS` stands for; raise `UnknownNameError` for another."""
    if name not in IMPLEMENTATIONS:
        raise UnknownNameError("implementation", name, IMPLEMENTATIONS)
    return _TABLE["blocked" if name == "auto" else name]


def _check_operands(
    teacher: Tensor, student: Tensor, teacher_anchors: Tensor, student_anchors: Tensor
) -> None:
    named = {
        "teacher": teacher,
        "student": student,
        "teacher_anchors": teacher_anchors,
        "student_anchors": student_anchors,
    }
    for name, tensor in named.items():
        if tensor.ndim != 2 or 0 in tensor.shape:
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
    _check_equal("rows", 0, teacher=teacher, student=student)
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


def _check_mask(mask: tuple[Tensor, Tensor], student: Tensor, anchors: Tensor) -> None:
    for name, index, owner in zip(
        ("image_index", "anchor_index"), mask, (student, anchors), strict=True
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
