"""What the loss needs of its anchors, wherever they come from."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from distill.anchors.queue import Anchors
from distill.anchors.shards import Shard


class AnchorMemory(Protocol):
    """Paired banks of unit rows; `AnchorQueue` and `DatasetAnchors` are such."""

    size: int
    shard: Shard
    num_real: int

    @property
    def is_sharded(self) -> bool:
        """Whether other ranks hold a part of the anchors."""
        ...

    @property
    def one_bank(self) -> bool:
        """Whether teacher and student read the same bank."""
        ...

    def anchors(self) -> Anchors:
        """Return this rank's real anchors without copying them."""
        ...

    def enqueue(self, teacher: Tensor, student: Tensor | None, image_index: Tensor) -> None:
        """Take in the rows of a batch of all ranks, after its loss."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's part of what a checkpoint must hold; empty for nothing."""
        ...

    def load_state_dict(self, *shards: dict[str, Any]) -> None:
        """Restore what `state_dict` returned on every rank, in the order of the ranks."""
        ...
