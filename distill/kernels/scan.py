"""The seam between the anchor KL and an implementation of its arithmetic.

An implementation passes over the anchors twice. The first pass leaves three numbers per row (B rows
of the batch): the log-sum-exps of the teacher's and the student's logits, and the mean gap between
both logits under the teacher's distribution, from which

    KL(p || q) = E_p[teacher logit - student logit] - lse_t + lse_s

The second pass turns the log-sum-exps into the gradient. Between the two, statistics over several
parts of the anchors can be merged, which is all that a bank spread over W ranks needs:
`ShardedScan` gathers the student's rows of all ranks, scans them against this rank's anchors,
gathers and merges the statistics (3 numbers a row), and sums the shares of the gradient where the
rows came from. All of it happens before the loss is returned: a backward pass exchanges nothing.

Shapes: B rows of the batch, b of them on this rank, K anchors, W ranks, Ds the student's width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from distill import distributed
from distill.distributed import all_gather_variable, scatter_sum


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


class ShardedScan:
    """The scan of all ranks' anchors; see `Scan`.

    The statistics are those of all B rows, the same to the last bit on every rank. The gradient is
    that of this rank's b rows, times W: what `distill.distributed` expects of a loss that is the
    same on every rank.

    Args:
        scan: Makes the scan of this rank's anchors.
        row_counts: b of every rank.
        *operands: The teacher's embeddings of all rows, B x Dt; the student's of this rank's rows,
            b x Ds, b may be 0; this rank's shards of both banks, which may hold no anchor.
        **options: Further ones of the scan; the image indices of the self-mask are of all rows.
    """

    def __init__(
        self,
        scan: Callable[..., Scan],
        row_counts: Sequence[int],
        *operands: Tensor,
        **options: Any,
    ) -> None:
        teacher, student, *banks = operands
        rows = all_gather_variable(student, row_counts)
        if len(banks[1]):
            self._scan = scan(teacher, rows, *banks, **options)
        else:
            self._scan = _EmptyScan(rows, banks[1].dtype)
        self._row_counts = row_counts
        self.statistics = merged(distributed.all_gather(self._scan.statistics[None]))

    def gradient(self, lse: Tensor) -> Tensor:
        """Return this rank's rows of W sum_j (q_ij - p_ij) A_s[j], b x Ds; see `Scan`."""
        share = self._scan.gradient(lse)
        return scatter_sum(share, self._row_counts).mul_(len(self._row_counts))


class _EmptyScan:
    """What a rank contributes while none of the anchors is its own."""

    def __init__(self, rows: Tensor, bank_dtype: torch.dtype) -> None:
        no_lse = torch.full((2, len(rows)), -torch.inf, dtype=torch.float64, device=rows.device)
        self.statistics = torch.cat([no_lse, torch.zeros_like(no_lse[:1])])
        dtype = torch.promote_types(torch.float32, bank_dtype)
        self._gradient = torch.zeros_like(rows, dtype=dtype)

    def gradient(self, lse: Tensor) -> Tensor:
        return self._gradient
