"""The distillation objective: a student learns from a teacher against a queue of anchors.

One step, in the order of the paper (CompRess, NeurIPS 2020): teacher and student embed the batch,
both are compared with the anchors that lie in the queue, the optimizer moves the student, the
momentum copy follows, and only then is the batch enqueued.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from distill.data.views import Batch
from distill.engine.device import autocast
from distill.engine.momentum import MomentumCopy
from distill.engine.teacher import Teacher
from distill.losses.compress import CompRess
from distill.networks import EmbeddingNetwork


class Distillation:
    """Trains `student` (through `projection`) to see the anchors as `teacher` does.

    Args:
        student: The network that is trained, on `device`.
        teacher: Gives the teacher's embeddings; never trained, never saved.
        compress: The loss with its anchor queue.
        projection: Linear layer after the student during training, or None.
        momentum: m of the momentum copy that embeds the student's anchors, or None for no copy.
        device: Where everything lies.
        precision: `fp32` or `bf16`, of the student's passes.
    """

    def __init__(
        self,
        student: EmbeddingNetwork,
        teacher: Teacher,
        compress: CompRess,
        *,
        projection: nn.Module | None,
        momentum: float | None,
        device: torch.device,
        precision: str,
    ) -> None:
        self.network = nn.Sequential(student, projection or nn.Identity()).to(device)
        self.teacher = teacher
        self.compress = compress
        self.copy = None if momentum is None else MomentumCopy(self.network, momentum=momentum)
        self.device = device
        self.precision = precision
        self._to_enqueue: tuple[Tensor, Tensor, Tensor] | None = None

    def train_mode(self) -> None:
        """Put the student into train mode."""
        self.network.train()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the student's and the projection's parameters."""
        return self.network.parameters()

    def loss(self, batch: Batch) -> Tensor | None:
        """Return KL(teacher || student) over the anchors; None while the queue has none."""
        teacher, index = self.teacher(batch), batch.index.to(self.device)
        views = batch.view.to(self.device, non_blocking=True)
        with autocast(self.device, self.precision):
            student = self.network(views)
            key = student.detach() if self.copy is None else self.copy(views)
        self._to_enqueue = (teacher, key.float(), index)
        return self.compress(teacher, student.float(), index)

    def after_step(self, *, stepped: bool) -> None:
        """Let the momentum copy follow, then enqueue the batch."""
        assert self._to_enqueue is not None, "after_step follows loss"
        if stepped and self.copy is not None:
            self.copy.update(self.network)
        self.compress.enqueue(*self._to_enqueue)
        self._to_enqueue = None

    @torch.no_grad()
    def fill(self, batch: Batch) -> bool:
        """Enqueue a batch without learning from it; return whether the queue is now full."""
        views = batch.view.to(self.device)
        network = self.network if self.copy is None else self.copy.network
        with autocast(self.device, self.precision):
            key = network(views)
        self.compress.enqueue(self.teacher(batch), key.float(), batch.index.to(self.device))
        return self.compress.queue.num_real == self.compress.queue.size

    def metrics(self) -> dict[str, float]:
        """Return the number of anchors that are real."""
        return {"num_anchors": self.compress.queue.num_real}

    def state_dict(self) -> dict[str, Any]:
        """Return student, projection, momentum copy and queue; the teacher is not part of it."""
        state = {"network": self.network.state_dict(), "queue": self.compress.queue.state_dict()}
        if self.copy is not None:
            state["copy"] = self.copy.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.compress.queue.load_state_dict(state["queue"])
        if self.copy is not None:
            self.copy.load_state_dict(state["copy"])
