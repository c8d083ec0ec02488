"""What the training loop trains: the seam between the loop and a method.

The loop owns the order of events (loss, backward, optimizer, schedule, after the step); an
objective owns networks and what its method remembers between steps: `distillation` and `imitation`
of a teacher, `pretraining` of a network without one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from distill.data.views import Batch
from distill.engine.checkpoint import Shard


class Objective(Protocol):
    """The interface that the loop calls, in this order."""

    def train_mode(self) -> None:
        """Put the trained networks into train mode."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that the optimizer moves."""
        ...

    def accepts(self, row_counts: Sequence[int]) -> bool:
        """Return whether a batch can be learnt from, given its number of images on every rank."""
        ...

    def loss(self, batch: Batch) -> Tensor | None:
        """Return the loss of a batch, or None when there is nothing to learn from it yet.

        `batch` is this rank's part of one that `accepts`; the mean over the ranks is the loss of
        the whole.
        """
        ...

    def after_step(self, *, stepped: bool) -> None:
        """Update what follows the networks; `stepped` is False when the batch gave no loss."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return further numbers for the log of the last batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a checkpoint must restore and that is the same on all ranks."""
        ...

    def shard(self) -> Shard | None:
        """Return what a checkpoint must restore and each rank holds a part of; None for nothing."""
        ...

    def load_state_dict(self, state: dict[str, Any], shards: Sequence[dict[str, Any]]) -> None:
        """Restore what `state_dict` and every rank's `shard` returned, on any number of ranks."""
        ...
