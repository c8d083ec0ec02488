"""Rows of a batch, exchanged between ranks that hold unequal numbers of them.

The backends exchange tensors of one shape only: rows travel padded to the largest number on any
rank, and the numbers themselves (`row_counts`) are exchanged first, once for a batch. Only
`gather_rows_with_gradient` is differentiable. All of it is valid in one process, where there is
nothing to exchange.

Shapes: b rows on this rank, B rows on all ranks together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from distill import distributed


def row_counts(num_rows: int) -> list[int]:
    """Return how many rows every rank has, in the order of the ranks, the same on every rank."""
    count = torch.tensor([num_rows], device=distributed.exchange_device())
    return distributed.all_gather(count).tolist()


def own_rows(counts: Sequence[int]) -> slice:
    """Return where this rank's rows are among those of all ranks."""
    first = sum(counts[: distributed.rank()])
    return slice(first, first + counts[distributed.rank()])


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Put the rows of all ranks under each other, in the order of the ranks.

    Args:
        rows: (b, ...), of the same dtype and trailing shape on every rank; b may be 0.
        counts: b of every rank, at least one of them above 0.

    Returns:
        (B, ...), the same on every rank; `rows` itself with one rank.
    """
    if len(counts) == 1:
        return rows
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    return _without_padding(distributed.all_gather(padded), counts)


def gather_rows_with_gradient(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Put the rows of all ranks under each other, in the order of the ranks; differentiable.

    Arguments and result are those of `gather_rows`.

    Returns:
        (B, ...). The gradient of `rows` is the sum of the gradients that all ranks computed for
        them: for a loss that every rank computes of all rows, W times its gradient, which
        DistributedDataParallel's average over W ranks undoes.
    """
    if len(counts) == 1:
        return rows
    padding = rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])
    return _without_padding(distributed.all_gather(torch.cat([rows, padding])), counts)


def _without_padding(gathered: Tensor, counts: Sequence[int]) -> Tensor:
    parts = gathered.split(max(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def scatter_sum(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Add up what all ranks computed for all rows; return the sums of this rank's rows.

    Args:
        rows: (B, ...), of one shape and dtype on every rank.
        counts: b of every rank, at least one of them above 0.

    Returns:
        (b, ...); `rows` itself with one rank.
    """
    if len(counts) == 1:
        return rows
    padded = rows.new_zeros(len(counts), max(counts), *rows.shape[1:])
    for space, part in zip(padded, rows.split(list(counts)), strict=True):
        space[: len(part)] = part
    sums = torch.empty_like(padded[0])
    # The name up to PyTorch 2.12 and the one from there on. gloo has it for equal parts only.
    reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    reduce_scatter(sums, padded.flatten(0, 1))
    return sums[: counts[distributed.rank()]]
