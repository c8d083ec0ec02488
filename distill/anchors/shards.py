"""Which rank holds which anchor, when a queue is spread over W ranks.

Anchor g lies on rank g % W, in row g // W of that rank's buffers: round-robin, so that at every
moment the ranks hold equally many real anchors, give or take one, and those are the first rows of
each. A shard is (rank, W); one process is (0, 1). Shapes: K anchors of the whole queue.
"""

from __future__ import annotations

import math

from torch import Tensor

Shard = tuple[int, int]


def num_held(num_anchors: int, shard: Shard) -> int:
    """Return how many of the first anchors of a queue a rank holds."""
    rank, num_ranks = shard
    return max(0, -(-(num_anchors - rank) // num_ranks))


def write(buffer: Tensor, start: int, rows: Tensor, *, size: int, shard: Shard) -> None:
    """Store rows as anchors `start` and following, continuing at anchor 0; keep a rank's own.

    Of consecutive anchors a rank keeps every W-th, which are consecutive rows of its buffer.

    Args:
        buffer: Of the rank, `num_held(size, shard)` rows.
        start: Anchor of the first row, in [0, size).
        rows: At most `size` of them.
        size: K.
        shard: Of the buffer.
    """
    rank, num_ranks = shard
    before_end = min(len(rows), size - start)
    for first, part in ((start, rows[:before_end]), (0, rows[before_end:])):
        skipped = (rank - first) % num_ranks
        mine, place = part[skipped::num_ranks], (first + skipped) // num_ranks
        buffer[place : place + len(mine)] = mine


def copy_shared(buffer: Tensor, saved: Tensor, *, shard: Shard, saved_shard: Shard) -> None:
    """Copy the anchors that two shards of one queue have in common, out of a saved buffer.

    Nothing but these anchors is read, and nothing is kept in between.

    Args:
        buffer: Of `shard`; changed in place.
        saved: Of `saved_shard`, which may be one of another number of ranks.
        shard: Where to.
        saved_shard: Where from.
    """
    (rank, num_ranks), (saved_rank, num_saved) = shard, saved_shard
    common = math.gcd(num_ranks, num_saved)
    if (rank - saved_rank) % common:
        return  # no anchor lies on both
    own = range(rank, num_ranks * num_saved, num_ranks)
    first = next(anchor for anchor in own if anchor % num_saved == saved_rank)
    # From there on, every lcm(num_ranks, num_saved)-th anchor: regular steps through both buffers.
    source = saved[first // num_saved :: num_ranks // common]
    buffer[first // num_ranks :: num_saved // common] = source
