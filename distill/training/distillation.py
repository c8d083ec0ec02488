"""The distillation objective: a student, a teacher, and a loss between what they make of a batch.

One step, in the order of CompRess (NeurIPS 2020): teacher and student embed the batch, the loss
compares them, the optimizer moves the student, its momentum copy follows, and only then do the
loss's memories take in the batch.

Under several ranks each embeds its part of the batch. BatchNorm is synchronized, the student's and
the copy's; gradients are averaged by DistributedDataParallel; rows are gathered. A loss is computed
of all rows on every rank, so that heads and memories stay equal everywhere, unless it asks for this
rank's rows alone (`DistillationLoss.takes_own_rows`). A step is that of one process with the global
batch, however unequal the parts: one may be empty.

Shapes: V views, B images of all ranks, b of this rank, S side of a view, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from distill import distributed
from distill.data.loader import Batch
from distill.device import autocast
from distill.distributed import all_gather_variable, all_gather_variable_with_gradient, row_counts
from distill.losses.base import DistillationLoss, ShardState
from distill.models.networks import EmbeddingNetwork
from distill.training.batch_norm import synchronize_batch_norm
from distill.training.teacher import Teacher


class MultiCropWrapper(nn.Module):
    """Embeds all views in one call and one pass, as DistributedDataParallel expects of a step.

    Source: Caron et al., SwAV, NeurIPS 2020 (multi-crop). The views share the statistics of
    BatchNorm.

    Args:
        network: Embeds images, (B, 3, S, S) -> (B, D).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the embeddings (b, D) of each view, in their order; `views` are (b, 3, S, S)."""
        together = views[0] if len(views) == 1 else torch.cat(list(views))
        return tuple(self.network(together).chunk(len(views)))


class MomentumCopy:
    """An exponential moving average of a network's parameters that can embed.

    key <- m key + (1 - m) student after every step (He et al., MoCo, CVPR 2020; CompRess, NeurIPS
    2020). Parameters only: the copy's BatchNorm stays in train mode and keeps statistics of its
    own, as published.

    Args:
        network: The network that is trained; the copy starts equal to it.
        momentum: m in [0, 1].
    """

    def __init__(self, network: nn.Module, *, momentum: float) -> None:
        self.momentum = momentum
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Embed images; same shapes as the network's, no gradient."""
        return self.network(images)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the copy's parameters towards `network`'s."""
        copies: list[Tensor] = list(self.network.parameters())
        followed: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(copies, followed, 1 - self.momentum)

    def state_dict(self) -> dict[str, Tensor]:
        """Return parameters and BatchNorm statistics."""
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.network.load_state_dict(state)


class Distillation:
    """Trains `student` by `loss`: what the training loop calls (`distill.training.loop.Method`).

    Args:
        student: The network that is trained, on `device`.
        teacher: Gives the teacher's embeddings; never trained, never saved. None for a loss that
            does not look at them at every step.
        loss: With its anchors, projection, heads and memories.
        weight: Factor of the loss.
        num_views: Views of an image that the student sees in a step.
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
        num_views: int = 1,
        device: torch.device,
        precision: str,
    ) -> None:
        self.student, self.teacher, self.criterion = student, teacher, loss.to(device)
        self.weight, self.num_views = weight, num_views
        self.device, self.precision = device, precision
        self.network = nn.Sequential(student, loss.projection or nn.Identity()).to(device)
        synchronize_batch_norm(self.network, device)
        self._parallel = distributed.data_parallel(MultiCropWrapper(self.network), device)
        # The gradients of heads are equal on all ranks, up to the order in which a device adds;
        # their average keeps the ranks from drifting apart. All begin with the first rank's heads.
        has_heads = loss.projection is None and any(p.requires_grad for p in loss.parameters())
        self._parallel_loss: nn.Module = loss
        if has_heads:
            self._parallel_loss = distributed.data_parallel(loss, device)
        # Only now have all ranks the first one's weights.
        self.copy = None
        if loss.momentum is not None:
            self.copy = MomentumCopy(self.network, momentum=loss.momentum)

    def train_mode(self) -> None:
        """Put the student and the heads into train mode."""
        self._parallel.train()
        self._parallel_loss.train()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the student and of the loss."""
        return chain(self.student.parameters(), self.criterion.parameters())

    def accepts(self, row_counts: Sequence[int]) -> bool:
        """Return whether the ranks have two images together, as BatchNorm needs."""
        return sum(row_counts) >= 2

    def loss(self, batch: Batch) -> Tensor | None:
        """Return the loss of a batch; None while there is nothing to learn from."""
        counts = row_counts(len(batch.index))
        teacher, index = self._of_teacher(batch, counts)
        label = all_gather_variable(batch.label.to(self.device), counts)
        views = self._views(batch)
        more: dict[str, Any] = {}
        with autocast(self.device, self.precision):
            students = self._parallel(views)
            if self.copy is not None:
                more["key"] = self.copy(views[0])
        if self.criterion.takes_own_rows:
            more["row_counts"] = counts
        else:
            students = [
                all_gather_variable_with_gradient(rows.float(), counts) for rows in students
            ]
        student = students if self.criterion.takes_views else students[0]
        loss = self._parallel_loss(teacher, student, index, label, **more)
        return None if loss is None else self.weight * loss

    def after_step(self, *, stepped: bool) -> None:
        """Let the momentum copy follow, then let memories take in the batch."""
        if stepped and self.copy is not None:
            self.copy.update(self.network)
        self.criterion.after_step()

    @torch.no_grad()
    def fill(self, batch: Batch) -> bool:
        """Take in a batch without learning from it; return whether the memory is full."""
        counts = row_counts(len(batch.index))
        teacher, index = self._of_teacher(batch, counts)

        def embed() -> Tensor:
            network = self.network if self.copy is None else self.copy.network
            with autocast(self.device, self.precision):
                rows = network(self._views(batch)[0])
            return all_gather_variable(rows.float(), counts)

        return self.criterion.fill(teacher, embed, index)

    def metrics(self) -> dict[str, float]:
        """Return the loss's further numbers."""
        return self.criterion.metrics()

    def state_dict(self) -> dict[str, Any]:
        """Return student, loss and momentum copy; the teacher is not part of it."""
        state: dict[str, Any] = {
            "student": self.student.state_dict(),
            "loss": self.criterion.state_dict(),
        }
        if self.copy is not None:
            state["copy"] = self.copy.state_dict()
        return state

    def shard(self) -> ShardState | None:
        """Return what the loss spreads over ranks."""
        return self.criterion.shard()

    def load_state_dict(self, state: dict[str, Any], shards: Sequence[dict[str, Any]]) -> None:
        """Restore what `state_dict` and every rank's `shard` returned."""
        self.student.load_state_dict(state["student"])
        self.criterion.load_state_dict(state["loss"])
        self.criterion.load_shards(shards)
        if self.copy is not None:
            self.copy.load_state_dict(state["copy"])

    def _of_teacher(self, batch: Batch, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the teacher's embeddings (B, Dt) and the indices of all ranks' images."""
        index = all_gather_variable(batch.index.to(self.device), counts)
        if self.teacher is None:
            return torch.empty(sum(counts), 0, device=self.device), index
        return all_gather_variable(self.teacher(batch), counts), index

    def _views(self, batch: Batch) -> list[Tensor]:
        """Return the student's views; without images they have no rows, and the usual size."""
        if len(batch.index) == 0:
            side = self.student.input.image_size
            empty = batch.view.new_empty((0, 3, side, side), device=self.device)
            return [empty] * self.num_views
        views = [batch.view, *batch.further_views]
        return [view.to(self.device, non_blocking=True) for view in views]
