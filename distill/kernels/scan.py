"""The seam between the anchor KL and an implementation of its arithmetic.

An implementation passes over the anchors twice. The first pass leaves three numbers per row (B rows
of the batch): the log-sum-exps of the teacher's and the student's logits, and the mean gap between
both logits under the teacher's distribution, from which

    KL(p || q) = E_p[teacher logit - student logit] - lse_t + lse_s

The second pass turns the log-sum-exps into the gradient. Between the two, statistics over several
parts of the anchors can be merged: that is all that a bank spread over processes needs
(`distill.kernels.anchor_kl`).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Scan(Protocol):
    """What an implementation leaves after its first pass.

    Attributes:
        statistics: lse_t, lse_s and the sum of exp(teacher logit - lse_t) times the logit gap; 3 x
            B, float64.
    """

    statistics: Tensor

    def gradient(self, lse: Tensor) -> Tensor:
        """Return sum_j (q_ij - p_ij) A_s[j], B x Ds, float32 or float64; may be called once.

        Args:
            lse: Log-sum-exps of teacher and student over all anchors, 2 x B, float64.
        """
        ...


def merged(parts: Tensor) -> Tensor:
    """Combine the statistics of P parts of the anchors, P x 3 x B, into those of all, 3 x B.

    A part without anchors has log-sum-exps of minus infinity and a gap of 0; one part at least has
    anchors. A row that loses all anchors of a part to the self-mask must have finite log-sum-exps
    there, far below any real one: it may lose those of the other parts too.
    """
    lse = torch.logsumexp(parts[:, :2], 0)
    gap = (parts[:, 0] - lse[0]).exp().mul(parts[:, 2]).sum(0)
    return torch.stack([*lse, gap])


def divergence(statistics: Tensor) -> Tensor:
    """Return the mean of KL(p || q) over the rows, 0-d float32, given 3 x B statistics."""
    lse_t, lse_s, gap = statistics
    return (gap - lse_t + lse_s).mean().float()
