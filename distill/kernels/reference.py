"""The anchor KL as in the paper, in float64: the reference for the kernels.

Source and equation: see `anchor_kl`. Limits: copies both banks to float64 and keeps several B x K
matrices, so it is for tests and small banks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference_anchor_kl(
    teacher: Tensor,
    student: Tensor,
    teacher_anchors: Tensor,
    student_anchors: Tensor,
    *,
    temperatures: tuple[float, float],
    self_mask: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Compute the loss with differentiable operations.

    Args and result as of `anchor_kl`, any float dtypes; `temperatures` are the teacher's and the
    student's.
    """
    teacher_logits = teacher.detach().double() @ teacher_anchors.detach().double().T
    student_logits = student.double() @ student_anchors.detach().double().T
    excluded = torch.zeros_like(teacher_logits, dtype=torch.bool)
    if self_mask is not None:
        image_index, anchor_index = self_mask
        excluded = (image_index[:, None] == anchor_index) & (anchor_index >= 0)
    bare = excluded.all(1, keepdim=True)
    # A row without anchors has no softmax: it keeps all anchors here, and its term becomes 0.
    hidden = excluded & ~bare
    log_p = _log_softmax(teacher_logits / temperatures[0], hidden)
    log_q = _log_softmax(student_logits / temperatures[1], hidden)
    terms = (log_p.exp() * (log_p - log_q)).masked_fill(hidden | bare, 0)
    return terms.sum(1).mean().float()


def _log_softmax(logits: Tensor, hidden: Tensor) -> Tensor:
    """Return log softmax over the entries that are not `hidden`; the hidden ones are 0."""
    log_softmax = torch.log_softmax(logits.masked_fill(hidden, -torch.inf), 1)
    return log_softmax.masked_fill(hidden, 0)
