"""What changes over a pre-training run besides the learning rate, as functions of the step.

The pre-training objective: a backbone learns from two views of every image, without a teacher.

One step: both views are distorted on the device, embedded together (their BatchNorm statistics are
of both), compared by the method (SimCLR, C-SimCLR, BYOL, C-BYOL: `teachers`), the optimizer moves
backbone and heads, and the momentum target, if the method has one, follows. Under several ranks
gradients are averaged by DistributedDataParallel, BatchNorm is synchronized and the methods gather
their negatives, so that a step is that of one process with the global batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill import distributed
from distill.data.distortions import distort
from distill.data.loader import Batch
from distill.device import autocast
from distill.models.networks import EmbeddingNetwork
from distill.training.batch_norm import synchronize_batch_norm
from distill.training.distillation import MomentumCopy
from teachers.pretraining import LossOutput, PretrainMethod

Schedule = Callable[[int], float]


def beta_schedule(beta: float, *, kind: str, num_steps: int) -> Schedule:
    """Return the weight of the residual information at a step, counted from 0.

    Args:
        beta: The weight that is reached and kept.
        kind: `constant`, or how it rises from 0: `linear`, `cosine` (slowly at both ends).
        num_steps: Steps that the rise takes.
    """

    def value(step: int) -> float:
        if kind == "constant" or step >= num_steps:
            return beta
        done = step / num_steps
        return beta * (done if kind == "linear" else 0.5 * (1 - math.cos(math.pi * done)))

    return value


def target_momentum_schedule(first: float, *, num_steps: int) -> Schedule:
    """Return the target's momentum at a step: from `first` to 1 by half a cosine.

    m = 1 - (1 - m0) (1 + cos(pi t / T)) / 2 (Grill et al., BYOL, NeurIPS 2020).
    """

    def value(step: int) -> float:
        done = min(1.0, step / max(1, num_steps))
        return 1 - (1 - first) * (1 + math.cos(math.pi * done)) / 2

    return value


class Online(nn.Module):
    """Backbone and method, from distorted images to the loss.

    Args:
        backbone: Embeds images, (2B, 3, S, S) -> (2B, D).
        method: With its heads.
        device: Where both lie.
        precision: `fp32` or `bf16`, of backbone and head; the method computes in float32.
    """

    def __init__(
        self,
        backbone: EmbeddingNetwork,
        method: PretrainMethod,
        *,
        device: torch.device,
        precision: str,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.method = method
        self.device = device
        self.precision = precision

    def followed(self) -> nn.Module:
        """Return what a momentum target follows: backbone and head, themselves, not a copy."""
        return nn.Sequential(self.backbone, self.method.head)

    def forward(
        self,
        images: Tensor,
        target: Tensor | None,
        beta: float | None,
        generator: torch.Generator,
    ) -> LossOutput:
        """Return the outcome of a batch; first views are followed by second views."""
        with autocast(self.device, self.precision):
            hidden = self.method.head(self.backbone(images))
        compression = {} if beta is None else {"beta": beta, "generator": generator}
        return self.method(hidden.float(), target, **compression)


class Pretraining:
    """Trains `backbone` through the heads of `method`.

    Args:
        backbone: The network that is trained, on `device`.
        method: See `Online`.
        beta: Weight of the residual information at a step; None for a method without.
        target_momentum: Momentum of the target at a step; None for a method without.
        seed: Of the samples z.
        device: Where everything lies.
        precision: `fp32` or `bf16`.
    """

    def __init__(
        self,
        backbone: EmbeddingNetwork,
        method: PretrainMethod,
        *,
        beta: Schedule | None,
        target_momentum: Schedule | None,
        seed: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self.online = Online(backbone, method.to(device), device=device, precision=precision)
        synchronize_batch_norm(self.online, device)
        self.parallel = distributed.data_parallel(self.online, device)
        # Only now have all ranks the first one's weights.
        self.copy: MomentumCopy | None = None
        if target_momentum is not None:
            self.copy = MomentumCopy(self.online.followed(), momentum=target_momentum(0))
        self.beta, self.target_momentum = beta, target_momentum
        self.seed = seed
        self.device = device
        self.precision = precision
        self.step = 0
        self._num_draws = 0
        self._logged: dict[str, Tensor] = {}

    def train_mode(self) -> None:
        """Put backbone and heads into train mode."""
        self.parallel.train()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of backbone and heads; the target's are not among them."""
        return self.online.parameters()

    def accepts(self, row_counts: Sequence[int]) -> bool:
        """Return whether all ranks have equally many images, as the methods need, and two."""
        return min(row_counts) >= 2 and min(row_counts) == max(row_counts)

    def loss(self, batch: Batch) -> Tensor:
        """Return the method's loss of both views of a batch."""
        images = self._distorted(batch)
        target = None
        if self.copy is not None:
            with autocast(self.device, self.precision):
                target = self.copy(images).float()
        beta = None if self.beta is None else self.beta(self.step)
        outcome = self.parallel(images, target, beta, self._generator())
        self._logged = outcome.logged
        return outcome.loss

    def after_step(self, *, stepped: bool) -> None:
        """Let the target follow, by the momentum of this step."""
        if not stepped:
            return
        if self.copy is not None and self.target_momentum is not None:
            self.copy.momentum = self.target_momentum(self.step)
            self.copy.update(self.online.followed())
        self.step += 1

    def metrics(self) -> dict[str, float]:
        """Return what the method logged of the last batch, beta and the target's momentum."""
        names = list(self._logged)
        values = torch.stack([self._logged[name] for name in names]).tolist() if names else []
        metrics = dict(zip(names, values, strict=True))
        if self.beta is not None:
            metrics["beta"] = self.beta(max(0, self.step - 1))
        if self.copy is not None:
            metrics["target_momentum"] = self.copy.momentum
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return backbone, heads, target and where the schedules stand."""
        state = {
            "online": self.online.state_dict(),
            "step": self.step,
            "num_draws": self._num_draws,
        }
        if self.copy is not None:
            state["copy"] = self.copy.state_dict()
        return state

    def shard(self) -> None:
        """Return that every rank holds everything."""

    def load_state_dict(self, state: dict[str, Any], shards: Sequence[dict[str, Any]] = ()) -> None:
        """Restore what `state_dict` returned."""
        self.online.load_state_dict(state["online"])
        self.step, self._num_draws = state["step"], state["num_draws"]
        if self.copy is not None:
            self.copy.load_state_dict(state["copy"])

    def _distorted(self, batch: Batch) -> Tensor:
        """Return both views of a batch as the backbone sees them, (2B, 3, S, S) in [0, 1]."""
        assert batch.second_view is not None, "pre-training needs two views"
        assert batch.distortion is not None, "pre-training needs distortions"
        views = [
            distort(view.to(self.device, non_blocking=True), batch.distortion[:, position])
            for position, view in enumerate((batch.view, batch.second_view))
        ]
        return torch.cat(views)

    def _generator(self) -> torch.Generator:
        """Return a generator of its own for every draw and rank: nothing to save but a count."""
        key = f"{self.seed}/{self._num_draws}/{distributed.rank()}".encode()
        self._num_draws += 1
        digest = hashlib.blake2b(key, digest_size=7).digest()
        return torch.Generator(self.device).manual_seed(int.from_bytes(digest, "little"))
