"""A network over several views of each image, in as many passes as the views have sizes.

Source: Caron et al., SwAV, NeurIPS 2020 (multi-crop). Views of one size share a pass and with it
the statistics of BatchNorm; the first view's size comes last, so that its statistics weigh most in
the running averages.

Shapes: V views, b images of this rank, S side of a view, D width.

The student while it is trained: through its projection, over all ranks, in its precision.

What a student is trained through and what is dropped after training.

`linear` is the layer of CompRess's one-queue variant, which brings the student to the teacher's
width. `mlp` puts a hidden layer twice as wide as the student's embedding in between, as the
predictors of later regression methods do (Navaneet et al., SimReg, BMVC 2021, which has two such):
the embedding below need not be a linear picture of the teacher's. Its BatchNorm is synchronized
over ranks with the student's.

The momentum copy of the student: key <- m key + (1 - m) student after every step.

Source: He et al., MoCo, CVPR 2020; CompRess, NeurIPS 2020. Parameters only: the copy's BatchNorm
stays in train mode and keeps statistics of its own, as published.

The distillation objective: a student learns from a teacher against a queue of anchors.

An image may be seen through several views, each of which is compared with what the teacher says of
the image. The loss is their mean; the first is what the momentum copy sees and what is enqueued.

A share of the loss may be Reg-BN's instead (`distill.losses.reg_bn`), between what the student is
compared by and the teacher's embedding: what the divergence becomes, up to a factor, for vectors of
any length at a high temperature against anchors that fill the space evenly. Neighbors are what the
divergence tells, the coarse structure is what this one teaches in few steps.

One step, in the order of the paper (CompRess, NeurIPS 2020): teacher and student embed the batch,
both are compared with the anchors that lie in the queue, the optimizer moves the student, the
momentum copy follows, and only then is the batch enqueued.

Under several ranks each embeds its part of the batch. BatchNorm is synchronized, the student's and
the copy's; gradients are averaged by DistributedDataParallel; what is enqueued is gathered first,
the teacher's rows once for loss and queue. A step is that of one process with the global batch,
however unequal the parts: one may be empty.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from distill import device as devices
from distill import distributed
from distill.data.loader import Batch
from distill.distributed import all_gather_variable, all_gather_variable_with_gradient, row_counts
from distill.losses.compress import CompRess
from distill.losses.reg_bn import standardized_error
from distill.losses.residual_information import ResidualInformation
from distill.models.networks import EmbeddingNetwork
from distill.training.batch_norm import synchronize_batch_norm
from distill.training.checkpoints import Shard
from distill.training.teacher import Teacher


class MultiCropWrapper(nn.Module):
    """Embeds all views within one call, as DistributedDataParallel wants of a step.

    Args:
        network: Embeds images, (B, 3, S, S) -> (B, D), of every size that comes.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the embeddings (b, D) of each view, in their order; `views` are (b, 3, S, S)."""
        embeddings: dict[int, Tensor] = {}
        sizes = list(dict.fromkeys(view.shape[-1] for view in views))
        for size in reversed(sizes):
            chosen = [number for number, view in enumerate(views) if view.shape[-1] == size]
            together = views[chosen[0]]
            if len(chosen) > 1:
                together = torch.cat([views[number] for number in chosen])
            found = self.network(together)
            embeddings |= dict(zip(chosen, found.chunk(len(chosen)), strict=True))
        return tuple(embeddings[number] for number in range(len(views)))


class TrainedStudent:
    """A student with synchronized BatchNorm, its gradients averaged over the ranks.

    Args:
        student: The network that is trained, on `device`.
        projection: Layers after the student during training (`distill.training.distillation`), or
        None.
        view_sizes: Side in pixels of every view of an image; None for one view of the usual size.
        device: Where both lie.
        precision: `fp32` or `bf16`, of `autocast`.

    Attributes:
        network: Student and projection.
        parallel: The same over all views (`MultiCropWrapper`), to be called where a backward pass follows.
            Only once it is made have all ranks the first one's weights.
    """

    def __init__(
        self,
        student: EmbeddingNetwork,
        *,
        projection: nn.Module | None = None,
        view_sizes: Sequence[int] | None = None,
        device: torch.device,
        precision: str,
    ) -> None:
        self.network = nn.Sequential(student, projection or nn.Identity()).to(device)
        synchronize_batch_norm(self.network, device)
        self.parallel = distributed.data_parallel(MultiCropWrapper(self.network), device)
        self.view_sizes = view_sizes or (student.input.image_size,)
        self.device = device
        self.precision = precision

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of the student's passes."""
        return devices.autocast(self.device, self.precision)

    def views(self, batch: Batch) -> list[Tensor]:
        """Return the student's views; without images they have no rows, and the usual sizes."""
        if len(batch.index) == 0:
            shapes = [(0, 3, side, side) for side in self.view_sizes]
            return [batch.view.new_empty(shape, device=self.device) for shape in shapes]
        views = [batch.view, *batch.further_views]
        return [view.to(self.device, non_blocking=True) for view in views]


PREDICTORS = ("none", "linear", "mlp")


def build_predictor(kind: str, embedding_dim: int, width: int) -> nn.Module | None:
    """Return the layers after the student, (B, embedding_dim) -> (B, width), or None for none.

    Args:
        kind: One of `PREDICTORS`.
        embedding_dim: D of the student.
        width: What comes out; 0 for no layers, which `mlp` cannot be asked for.
    """
    assert kind in PREDICTORS
    assert width > 0 or kind != "mlp"
    if kind == "none" or width == 0:
        return None
    if kind == "linear":
        return nn.Linear(embedding_dim, width)
    hidden = 2 * embedding_dim
    return nn.Sequential(
        nn.Linear(embedding_dim, hidden, bias=False),  # BatchNorm has one
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, width),
    )


class MomentumCopy:
    """An exponential moving average of a network's parameters that can embed.

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


CHANCE_EVERY = 10  # batches between those whose chance level is evaluated
CHANCE_KEPT = 4


class Distillation:
    """Trains `student` (through `projection`) to see the anchors as `teacher` does.

    Args:
        student: The network that is trained, on `device`.
        teacher: Gives the teacher's embeddings; never trained, never saved.
        compress: The loss with its anchor queue.
        projection: Layers after the student during training (`distill.training.distillation`), or None.
        view_sizes: Side in pixels of every view of an image; None for one view of the usual size.
        compression: Price on the residual information of the first two views, or None.
        regression_share: Part of the loss that is regression, 0 to 1; above 0 student (through
            `projection`) and teacher have one width.
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
        view_sizes: Sequence[int] | None = None,
        compression: ResidualInformation | None = None,
        regression_share: float = 0.0,
        device: torch.device,
        precision: str,
    ) -> None:
        self.student = TrainedStudent(
            student,
            projection=projection,
            view_sizes=view_sizes,
            device=device,
            precision=precision,
        )
        self.network = self.student.network
        self.teacher = teacher
        self.compress = compress
        # Only now have all ranks the first one's weights.
        self.copy = None if momentum is None else MomentumCopy(self.network, momentum=momentum)
        self.compression = compression
        self.regression_share = regression_share
        self._regression: Tensor | None = None
        self._information: Tensor | None = None
        self.device = device
        self._to_enqueue: tuple[Tensor, Tensor | None, Tensor] | None = None
        # Loss and chance level of the same images: their difference is what the student knows, and
        # images differ in both far more than that.
        self._beside_chance: deque[tuple[Tensor, Tensor]] = deque(maxlen=CHANCE_KEPT)
        self._num_losses = 0

    def train_mode(self) -> None:
        """Put the student into train mode."""
        self.student.parallel.train()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the student's and the projection's parameters."""
        return self.network.parameters()

    def accepts(self, row_counts: Sequence[int]) -> bool:
        """Return whether the ranks have two images together, as BatchNorm needs."""
        return sum(row_counts) >= 2

    def loss(self, batch: Batch) -> Tensor | None:
        """Return KL(teacher || student) over the anchors with what is added to it.

        None while the queue has no anchors.
        """
        counts = row_counts(len(batch.index))
        teacher, index = self._known(batch, counts)
        views = self.student.views(batch)
        with self.student.autocast():
            students = self.student.parallel(views)
            key = students[0].detach() if self.copy is None else self.copy(views[0])
        self._to_enqueue = (teacher, self._gathered_key(key, counts), index)
        losses = [self.compress(teacher, one.float(), index, counts) for one in students]
        of_views = [loss for loss in losses if loss is not None]
        if not of_views:
            return None
        loss = of_views[0] if len(of_views) == 1 else torch.stack(of_views).mean()
        self._look_beside(loss.detach(), teacher, index)
        if self.regression_share:
            regression = self._regressed(teacher, students, counts)
            loss = torch.lerp(loss, regression, self.regression_share)
        return loss if self.compression is None else loss + self._compressed(students, counts)

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
        counts = row_counts(len(batch.index))
        teacher, index = self._known(batch, counts)
        key = None
        if not self.compress.queue.one_bank:
            network = self.network if self.copy is None else self.copy.network
            with self.student.autocast():
                key = network(self.student.views(batch)[0])
        self.compress.enqueue(teacher, self._gathered_key(key, counts), index)
        return self.compress.queue.num_valid == self.compress.queue.size

    def _regressed(
        self, teacher: Tensor, students: Sequence[Tensor], counts: Sequence[int]
    ) -> Tensor:
        """Return the standardized error of all ranks' rows, the mean over the views."""
        # Columns of unit rows have variances of 1/D, too near to what is added to them.
        target = teacher / teacher.square().mean().sqrt().clamp_min(1e-12)
        rows = (all_gather_variable_with_gradient(one.float(), counts) for one in students)
        regression = torch.stack([standardized_error(target, one) for one in rows]).mean()
        self._regression = regression.detach()
        return regression

    def _compressed(self, students: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        """Return this rank's penalty, whose mean over the ranks is that of all images."""
        assert self.compression is not None
        x, y = students[0].float(), students[1].float()
        weight = len(counts) * len(x) / sum(counts)
        self._information = x.new_zeros(())
        if len(x):
            self._information = weight * self.compression.information(x, y).detach()
        return (weight or 1.0) * self.compression.penalty(x, y)

    def _look_beside(self, loss: Tensor, teacher: Tensor, index: Tensor) -> None:
        """Keep the loss of one batch in ten with its chance level, before it is enqueued."""
        if self._num_losses % CHANCE_EVERY == 0:
            chance = self.compress.chance(teacher, index)
            assert chance is not None
            self._beside_chance.append((loss, chance))
        self._num_losses += 1

    def _known(self, batch: Batch, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the teacher's embeddings and the indices of all ranks' images."""
        teacher, index = self.teacher(batch), batch.index.to(self.device)
        return all_gather_variable(teacher, counts), all_gather_variable(index, counts)

    def _gathered_key(self, key: Tensor | None, counts: Sequence[int]) -> Tensor | None:
        """Return the student's side of all ranks' anchors, of which one queue has none."""
        if key is None or self.compress.queue.one_bank:
            return None
        return all_gather_variable(key.float(), counts)

    def metrics(self) -> dict[str, float]:
        """Return the number of anchors that are real, and how the loss stands to chance.

        `chance_loss` is the loss of a student that tells no anchors apart, on the newest of the
        batches that it was evaluated for; `loss_over_chance` the ratio over the newest four, a
        regression and a penalty left out; `regression_error`, from 0 to 2 for unrelated embeddings,
        where it has a share; `residual_information`, in nats, where it has a price. All ranks call
        it together.
        """
        values: dict[str, float] = {"num_anchors": self.compress.queue.num_valid}
        if self._beside_chance:
            loss, chance = torch.tensor([*self._beside_chance]).sum(0).tolist()
            values["chance_loss"] = self._beside_chance[-1][1].item()
            values["loss_over_chance"] = distributed.mean_over_ranks(loss) / max(chance, 1e-12)
        if self._regression is not None:
            values["regression_error"] = self._regression.item()
        if self._information is not None:
            information = distributed.mean_over_ranks(self._information.item())
            values["residual_information"] = information
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return student, projection, momentum copy and how the loss stood to chance.

        The teacher is not part of it. All ranks call it together.
        """
        beside = [
            (distributed.mean_over_ranks(loss.item()), chance.item())
            for loss, chance in self._beside_chance
        ]
        state: dict[str, Any] = {
            "network": self.network.state_dict(),
            "beside_chance": beside,
            "num_losses": self._num_losses,
        }
        if self.copy is not None:
            state["copy"] = self.copy.state_dict()
        return state

    def shard(self) -> Shard | None:
        """Return this rank's part of the anchors; None where all of them can be looked up."""
        queue = self.compress.queue
        state = queue.state_dict()
        return Shard(*queue.shard, state) if state else None

    def load_state_dict(self, state: dict[str, Any], shards: Sequence[dict[str, Any]]) -> None:
        """Restore what `state_dict` and every rank's `shard` returned."""
        self.network.load_state_dict(state["network"])
        self._beside_chance.extend(
            (torch.tensor(loss), torch.tensor(chance)) for loss, chance in state["beside_chance"]
        )
        self._num_losses = state["num_losses"]
        if self.shard() is not None:
            self.compress.queue.load_state_dict(*shards)
        if self.copy is not None:
            self.copy.load_state_dict(state["copy"])
