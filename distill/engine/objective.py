"""What the training loop trains: the seam between the loop and a method.

The loop owns the order of events (loss, backward, optimizer, schedule, after the step); an
objective owns networks and what its method remembers between steps. Distillation is one;
self-supervised pre-training can be another without a second loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from distill.data.views import Batch


class Objective(Protocol):
    """The interface that the loop calls, in this order."""

    def train_mode(self) -> None:
        """Put the trained networks into train mode."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that the optimizer moves."""
        ...

    def loss(self, batch: Batch) -> Tensor | None:
        """Return the loss of a batch, or None when there is nothing to learn from it yet."""
        ...

    def after_step(self, *, stepped: bool) -> None:
        """Update what follows the networks; `stepped` is False when the batch gave no loss."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return further numbers for the log of the last batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a checkpoint must restore."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...
