"""A scan over anchors that are spread over ranks: any implementation, each rank over its shard.

The student's rows of all ranks are gathered; every rank scans them against its own anchors; the
statistics of the shards, 3 numbers a row, are gathered and merged; the second pass gives every rank
its share of the gradient of all rows, and the shares are added up where the rows came from. All of
it happens before the loss is returned: a backward pass exchanges nothing.

The arithmetic per rank is that of one process over K / W anchors. Shapes: B rows of the batch, b of
them on this rank, K anchors, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from distill import distributed
from distill.kernels.scan import Scan, merged
from distill.row_exchange import gather_rows, scatter_sum


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
        rows = gather_rows(student, row_counts)
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
