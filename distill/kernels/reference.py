"""Anchor KL written as the paper writes it, in float64: the answer that the kernels must give.

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020: p and q are the softmaxes of teacher and
student similarities to the anchors, the loss is the batch mean of KL(p || q) in nats.

Limits: widens both banks to float64 and holds several B x K matrices. For tests and small banks.
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
    """Evaluate the loss with operations that autograd differentiates.

    Args:
        teacher: Embeddings, B x Dt, any float dtype.
        student: Embeddings, B x Ds, any float dtype; the gradient flows to it.
        teacher_anchors: Bank, K x Dt, any float dtype.
        student_anchors: Bank, K x Ds, any float dtype.
        temperatures: The teacher's and the student's, > 0.
        self_mask: Image indices of the rows (B) and of the anchors (K), int64; see `anchor_kl`.

    Returns:
        The batch mean of KL(p || q), 0-d float32.
    """
    teacher_logits = teacher.detach().double() @ teacher_anchors.detach().double().T
    student_logits = student.double() @ student_anchors.detach().double().T
    excluded = torch.zeros_like(teacher_logits, dtype=torch.bool)
    if self_mask is not None:
        image_index, anchor_index = self_mask
        excluded = (image_index[:, None] == anchor_index) & (anchor_index >= 0)
    bare = excluded.all(1, keepdim=True)
    # A row without anchors has no softmax; it keeps all of them and counts nothing.
    hidden = excluded & ~bare
    log_p = _log_softmax(teacher_logits / temperatures[0], hidden)
    log_q = _log_softmax(student_logits / temperatures[1], hidden)
    terms = (log_p.exp() * (log_p - log_q)).masked_fill(hidden | bare, 0)
    return terms.sum(1).mean().float()


def _log_softmax(logits: Tensor, hidden: Tensor) -> Tensor:
    """Return log softmax over the entries that are not `hidden`; the hidden ones are 0."""
    log_softmax = torch.log_softmax(logits.masked_fill(hidden, -torch.inf), 1)
    return log_softmax.masked_fill(hidden, 0)
