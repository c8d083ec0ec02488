"""The interface between the anchor KL and its implementations, and anchors sharded over ranks.

An implementation passes over the anchors twice. The first pass computes three numbers per row: the
log-sum-exps of the teacher's and the student's logits, and the mean gap between both logits under
the teacher's distribution, from which

    KL(p || q) = E_p[teacher logit - student logit] - lse_t + lse_s

The second pass computes the gradient from the log-sum-exps. Between the passes, the statistics of
several parts of the anchors can be merged. `ShardedScan` gathers the student's rows of all ranks,
scans this rank's anchors, gathers and merges the statistics, and reduces the gradients to the ranks
that own the rows. All communication happens in the forward pass.

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
    """The result of the first pass."""

    # 3 x B, float64: lse_t, lse_s and the sum of exp(teacher logit - lse_t) times the logit gap.
    statistics: Tensor

    def gradient(self, lse: Tensor) -> Tensor:
        """Return sum_j (q_ij - p_ij) A_s[j], B x Ds, float32 or float64; call it at most once.

        Args:
            lse: Log-sum-exps of teacher and student over all anchors, 2 x B, float64.
        """
        ...


def merged(parts: Tensor) -> Tensor:
    """Merge the statistics of P parts of the anchors, P x 3 x B, into those of all, 3 x B.

    A part without anchors has log-sum-exps of minus infinity and a gap of 0; at least one part has
    anchors. Where the self-mask excludes all anchors of a part, the log-sum-exps must be finite and
    far below any other: the other parts may be excluded, too.
    """
    lse = torch.logsumexp(parts[:, :2], 0)
    gap = (parts[:, 0] - lse[0]).exp().mul(parts[:, 2]).sum(0)
    return torch.stack([*lse, gap])


def divergence(statistics: Tensor) -> Tensor:
    """Return the mean of KL(p || q) over the rows, 0-d float32, given 3 x B statistics."""
    lse_t, lse_s, gap = statistics
    return (gap - lse_t + lse_s).mean().float()


class ShardedScan:
    """A scan of the anchors of all ranks; see `Scan`.

    The statistics are of all B rows, bitwise equal on every rank. The gradient is of this rank's b
    rows, times W, as `distill.distributed` expects of a loss that is the same on every rank.

    Args:
        scan: Scans this rank's anchors.
        row_counts: b of every rank.
        *operands: The teacher's embeddings of all rows, B x Dt; the student's of this rank's rows,
            b x Ds, b may be 0; this rank's shards of both banks, possibly empty.
        **options: Options of the scan; the self-mask has the image indices of all B rows.
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
    """The scan of a rank without anchors."""

    def __init__(self, rows: Tensor, bank_dtype: torch.dtype) -> None:
        no_lse = torch.full((2, len(rows)), -torch.inf, dtype=torch.float64, device=rows.device)
        self.statistics = torch.cat([no_lse, torch.zeros_like(no_lse[:1])])
        dtype = torch.promote_types(torch.float32, bank_dtype)
        self._gradient = torch.zeros_like(rows, dtype=dtype)

    def gradient(self, lse: Tensor) -> Tensor:
        return self._gradient
