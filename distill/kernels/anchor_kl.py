"""How alike teacher and student see an image: KL between their similarities to the anchors.

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020. With anchors A_t (K x Dt), A_s (K x Ds):

    p_i = softmax_j(t_i . A_t[j] / tau_t)    q_i = softmax_j(s_i . A_s[j] / tau_s)
    loss = (1 / B) sum_i KL(p_i || q_i)      d loss / d s_i = sum_j (q_ij - p_ij) A_s[j] / (B tau_s)

This file checks the operands, picks an implementation and joins it to autograd; the arithmetic is
in `reference.py` (float64, obvious), `blocked.py` (any device) and `fused/` (CUDA, in Triton), and
`sharded.py` spreads either of the last two over the ranks that hold the anchors.
Limits: differentiable once, in the student only; rows are used as given, so the caller normalizes.
"""

from __future__ import annotations

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
from distill.kernels.operands import check_mask, check_num_real, check_operands, check_temperature
from distill.kernels.reference import reference_anchor_kl
from distill.kernels.scan import Scan, divergence
from distill.kernels.sharded import ShardedScan


def anchor_kl(
    teacher: Tensor,
    student: Tensor,
    teacher_anchors: Tensor,
    student_anchors: Tensor,
    *,
    teacher_temperature: float = 0.04,
    student_temperature: float = 0.04,
    self_mask: tuple[Tensor, Tensor] | None = None,
    num_real: int | None = None,
    implementation: str = "auto",
    row_counts: Sequence[int] | None = None,
) -> Tensor:
    """Return the batch mean of KL(p || q) over the anchors, in nats.

    Anchors may be spread over ranks (`row_counts`). All ranks then call this together, each with
    its shard of the banks, which may be empty; together they hold at least one anchor.

    Args:
        teacher: Teacher embeddings, B x Dt, any float dtype; a constant to autograd. Over ranks,
            of the rows of all ranks.
        student: Student embeddings, B x Ds, any float dtype; the gradient flows to it. Over ranks,
            of this rank's rows, of which there may be none.
        teacher_anchors: Teacher's bank, K x Dt, float32, bfloat16, float16 or float64.
        student_anchors: Student's bank, K x Ds, of the same dtype. The same object as
            `teacher_anchors` when both sides share one bank, which is then read once.
        teacher_temperature: tau_t, > 0.
        student_temperature: tau_s, > 0.
        self_mask: Image index of each row (B, int64, >= 0) and of each anchor (K, int64, -1 for no
            image). Anchor j leaves both softmaxes of row i where they are equal; a row that loses
            every anchor adds 0 to the sum over the batch and has no gradient.
        num_real: Only the first so many anchors count, 1 to K; the others are not read. None: all.
        implementation: One of `IMPLEMENTATIONS`; "auto" picks the fastest that can run.
        row_counts: Rows of the batch on every rank, when the anchors are spread over ranks; None
            when the banks hold all anchors.

    Returns:
        The loss, 0-d float32; over ranks, the same on every rank, its gradient as
        `distill.distributed` describes.

    Raises:
        DistillError: An operand's shape, dtype, device or temperature cannot be used, or the
            implementation is unknown or, over ranks, the reference.
    """
    check_implementation(implementation, sharded=row_counts is not None)
    check_operands(teacher, student, teacher_anchors, student_anchors, row_counts)
    check_temperature("teacher_temperature", teacher_temperature)
    check_temperature("student_temperature", student_temperature)
    if self_mask is not None:
        check_mask(self_mask, teacher, student_anchors)
    banks = (teacher_anchors, student_anchors)
    if num_real is not None:
        check_num_real(num_real, student_anchors)
        banks, self_mask = _first(num_real, banks, self_mask)
    options = {
        "temperatures": (float(teacher_temperature), float(student_temperature)),
        "self_mask": self_mask,
    }
    # The operands' own precision counts here, not that of a surrounding autocast region.
    with torch.autocast(student.device.type, enabled=False):
        evaluate = _implementation(implementation, student_anchors, row_counts)
        return evaluate(teacher, student, *banks, **options)


class _ScanLoss(torch.autograd.Function):
    """Joins autograd to a scan, which evaluates the gradient together with the loss."""

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


def _by_scan(scan: Callable[..., Scan], *operands: Tensor, **options: Any) -> Tensor:
    student = operands[1]
    if torch.is_grad_enabled() and student.requires_grad:
        temperature = options["temperatures"][1]
        return _ScanLoss.apply(student, partial(scan, *operands, **options), temperature)
    with torch.no_grad():
        return divergence(scan(*operands, **options, with_gradient=False).statistics)


IMPLEMENTATIONS = ("auto", "blocked", "reference", "triton")


def check_implementation(name: str, *, sharded: bool = False) -> None:
    """Raise `DistillError` for a name that is not in `IMPLEMENTATIONS` or cannot serve shards."""
    if name not in IMPLEMENTATIONS:
        raise UnknownNameError("implementation", name, IMPLEMENTATIONS)
    if sharded and name == "reference":
        raise DistillError(
            "the reference loss wants all anchors in one process and they are spread over "
            f"{distributed.world_size()}; use another loss implementation (--loss-implementation "
            "auto) or keep all anchors on every rank (--queue-sharding none)"
        )


def _implementation(
    name: str, bank: Tensor, row_counts: Sequence[int] | None
) -> Callable[..., Tensor]:
    if name == "reference":
        return reference_anchor_kl
    scan = _scan(name, bank)
    return partial(_by_scan, scan if row_counts is None else partial(ShardedScan, scan, row_counts))


def _scan(name: str, bank: Tensor) -> Callable[..., Scan]:
    if name == "triton":
        fused.require(bank)
    if name == "triton" or (name == "auto" and fused.preferred(bank)):
        from distill.kernels.fused.scan import FusedScan

        return FusedScan
    return BlockedScan


def _first(
    number: int, banks: tuple[Tensor, Tensor], self_mask: tuple[Tensor, Tensor] | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """View the first anchors of both banks, which stay one object when they are one."""
    teacher = banks[0][:number]
    student = teacher if banks[0] is banks[1] else banks[1][:number]
    mask = None if self_mask is None else (self_mask[0], self_mask[1][:number])
    return (teacher, student), mask
