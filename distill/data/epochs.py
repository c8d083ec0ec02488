"""The order in which a run goes through its images, epoch by epoch, batch by batch.

The order depends on (seed, epoch) alone, so that a run can resume inside an epoch and a run on
several ranks sees the batches of a run on one. Deliberate limit: shuffling is global and needs
random access to the images.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from distill.errors import DistillError

NO_IMAGE = -1


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """The batches of a whole run: every epoch a new order of all indices, cut into batches.

    The order depends on (seed, epoch) alone. A batch is a list of (epoch, index); a rank without
    any image of a batch gets [(epoch, -1)], which loads as a batch with B = 0.

    Args:
        indices: the images to go through.
        batch_size: images in a batch, all ranks together.
        num_epochs: the epoch to stop before.
        seed: at least 0.
        start: (epoch, batch) of the first batch.
        drop_last: leave out an epoch's last batch when it is smaller.
        shard: (rank, world size); each rank gets its contiguous part of every batch.

    Raises:
        DistillError: no batch in an epoch, or a start beyond the epoch's batches.
    """

    def __init__(
        self,
        indices: np.ndarray,
        *,
        batch_size: int,
        num_epochs: int,
        seed: int,
        start: tuple[int, int] = (0, 0),
        drop_last: bool = False,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.indices = indices
        self.batch_size = batch_size
        self.num_epochs = num_epochs
        self.seed = seed
        self.start_epoch, self.start_batch = start
        self.rank, self.world_size = shard
        self.num_batches = num_batches(len(indices), batch_size, drop_last=drop_last)
        if not 0 <= self.start_batch <= self.num_batches:
            raise DistillError(
                f"cannot start at batch {self.start_batch}: an epoch has {self.num_batches}; "
                "resume with the data and batch size that the run began with"
            )

    def __len__(self) -> int:
        num_left = (self.num_epochs - self.start_epoch) * self.num_batches - self.start_batch
        return max(0, num_left)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = self.start_batch
        for epoch in range(self.start_epoch, self.num_epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(self.indices)
            for batch in range(first, self.num_batches):
                rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                mine = np.array_split(rows, self.world_size)[self.rank]
                yield [(epoch, int(index)) for index in mine] or [(epoch, NO_IMAGE)]
            first = 0


def num_batches(num_images: int, batch_size: int, *, drop_last: bool) -> int:
    """Return how many batches an epoch has.

    Raises:
        DistillError: none at all.
    """
    if batch_size < 1:
        raise DistillError(f"the batch size is {batch_size}; it must be at least 1")
    if num_images == 0:
        raise DistillError("there is no image to train on")
    if drop_last and num_images < batch_size:
        raise DistillError(
            f"{num_images} images do not fill one batch of {batch_size}: lower --batch-size to "
            f"{num_images} or less"
        )
    return num_images // batch_size if drop_last else -(-num_images // batch_size)
