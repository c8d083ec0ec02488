"""Writes a batch into the banks: L2-normalized, in the banks' dtype, at the pointer.

On a CUDA device one fused kernel reads every row once and writes it once; elsewhere PyTorch
normalizes, casts and copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.anchors.shards import Shard, write
from distill.kernels import fused


def write_batch(
    banks: Sequence[Tensor],
    bank_index: Tensor,
    rows: Sequence[Tensor],
    image_index: Tensor,
    *,
    start: int,
    size: int,
    shard: Shard,
) -> None:
    """Write unit rows into one or two banks, and their images' indices.

    Args:
        banks: The rank's parts of the banks, `num_held(size, shard)` x width each.
        bank_index: Image indices of their anchors, int64.
        rows: For each bank, at most `size` of them, any float dtype; normalized in float32 at
            least.
        image_index: An index per row, int64.
        start: Anchor of the first row, in [0, size); the others follow, wrapping.
        size: K of the whole queue.
        shard: Of the rank.
    """
    rows = [part.to(bank.device) for part, bank in zip(rows, banks, strict=True)]
    image_index = image_index.to(bank_index.device)
    place: dict[str, Any] = {"start": start, "size": size, "shard": shard}
    if fused.preferred(banks[0]):
        from distill.kernels.fused.enqueue import WIDEST, enqueue_rows

        if max(bank.shape[1] for bank in banks) <= WIDEST:
            enqueue_rows(banks, bank_index, rows, image_index, **place)
            return
    for bank, part in zip(banks, rows, strict=True):
        wide = part.to(torch.promote_types(torch.float32, bank.dtype))
        write(bank, rows=F.normalize(wide), **place)
    write(bank_index, rows=image_index, **place)
