"""The objective of all baselines: a student and a loss between its embeddings and the teacher's.

Under several ranks each embeds its part of the batch, with synchronized BatchNorm. The rows of all
ranks are gathered, the student's with their gradient, and every rank computes the same loss of all
of them: heads and memories see the global batch and stay equal everywhere. A step is that of one
process with the global batch, however unequal the parts: one may be empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from distill import distributed
from distill.data.loader import Batch
from distill.distributed import all_gather_variable, all_gather_variable_with_gradient, row_counts
from distill.losses.base import DistillationLoss
from distill.models.networks import EmbeddingNetwork
from distill.training.distillation import TrainedStudent
from distill.training.teacher import Teacher


class Imitation:
    """Trains `student` by `loss`.

    Args:
        student: The network that is trained, on `device`.
        teacher: Gives the teacher's embeddings; None for a loss that does not look at them.
        loss: With its heads and memories.
        weight: Factor of the loss.
        device: Where everything lies.
        precision: `fp32` or `bf16`, of the student's passes; the loss computes in float32.
    """

    def __init__(
        self,
        student: EmbeddingNetwork,
        teacher: Teacher | None,
        loss: DistillationLoss,
        *,
        weight: float = 1.0,
        device: torch.device,
        precision: str,
    ) -> None:
        self.student = TrainedStudent(student, device=device, precision=precision)
        self.network = self.student.network
        self.teacher = teacher
        self.criterion = loss.to(device)
        # The heads' gradients are equal on all ranks, up to the order in which a device adds; their
        # average keeps the ranks from drifting apart. All begin with the first rank's heads.
        has_heads = any(parameter.requires_grad for parameter in loss.parameters())
        self._parallel: nn.Module = distributed.data_parallel(loss, device) if has_heads else loss
        self.weight = weight
        self.device = device

    def train_mode(self) -> None:
        """Put the student and the heads into train mode."""
        self.student.parallel.train()
        self._parallel.train()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the student and of the loss's heads."""
        return chain(self.network.parameters(), self.criterion.parameters())

    def accepts(self, row_counts: Sequence[int]) -> bool:
        """Return whether the ranks have two images together, as BatchNorm needs."""
        return sum(row_counts) >= 2

    def loss(self, batch: Batch) -> Tensor | None:
        """Return the loss of all ranks' rows; None while there is nothing to learn from."""
        counts = row_counts(len(batch.index))
        with self.student.autocast():
            (student,) = self.student.parallel(self.student.views(batch))
        loss = self._parallel(
            self._of_teacher(batch, counts),
            all_gather_variable_with_gradient(student, counts),
            all_gather_variable(batch.index.to(self.device), counts),
            all_gather_variable(batch.label.to(self.device), counts),
        )
        return None if loss is None else self.weight * loss

    def _of_teacher(self, batch: Batch, counts: Sequence[int]) -> Tensor:
        if self.teacher is None:
            return torch.empty(sum(counts), 0, device=self.device)
        return all_gather_variable(self.teacher(batch), counts)

    def after_step(self, *, stepped: bool) -> None:
        """Let memories take in the batch, also one that gave no loss."""
        self.criterion.after_step()

    def metrics(self) -> dict[str, float]:
        """Return what the loss tells of itself."""
        return self.criterion.metrics()

    def state_dict(self) -> dict[str, Any]:
        """Return student, heads and memories; the teacher is not part of it."""
        return {"network": self.network.state_dict(), "loss": self.criterion.state_dict()}

    def shard(self) -> None:
        """Return that every rank holds everything."""

    def load_state_dict(self, state: dict[str, Any], shards: Sequence[dict[str, Any]] = ()) -> None:
        """Restore what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.criterion.load_state_dict(state["loss"])
