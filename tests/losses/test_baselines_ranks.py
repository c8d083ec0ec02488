"""Every baseline over ranks, as the objective uses it, against one process with all rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from distill import distributed
from distill.config import OptimizationOptions
from distill.data.loader import Batch
from distill.losses.anchors import AnchorQueue
from distill.losses.base import DistillationLoss
from distill.losses.cc import CC, CCReleased
from distill.losses.clusterfit import ClusterFit
from distill.losses.crd import CRD
from distill.losses.reg import Reg
from distill.losses.reg_bn import RegBN
from distill.losses.rkd import RKD
from distill.losses.seed import SEED
from distill.losses.simreg import SimReg
from distill.losses.sp import SP
from distill.losses.supervised import Supervised
from distill.models.networks import InputSpec, NetworkSpec, build_network
from distill.training.distillation import Distillation
from distill.training.optimizer import build_optimizer

CPU = torch.device("cpu")
DT, DS, SIDE, NUM_IMAGES = 6, 5, 8, 40
# Rows of every rank, batch by batch: equal, unequal, the first rank without a row, one row short.
PARTS = {2: [(4, 4), (5, 2), (0, 6), (7, 1)], 3: [(2, 3, 3), (5, 2, 0), (0, 0, 6), (1, 1, 6)]}
LOSSES: dict[str, Callable[[], DistillationLoss]] = {
    "reg": lambda: Reg(DT, DS),
    "reg-bn": lambda: RegBN(DT, DS),
    "simreg": lambda: SimReg(DT, DS),
    "cc": CC,
    "cc-released": lambda: CCReleased(DT, DS, head_dim=4),
    "crd": lambda: CRD(DT, DS, torch.arange(NUM_IMAGES), head_dim=4, num_negatives=20),
    "rkd": RKD,
    "sp": SP,
    "seed": lambda: SEED(AnchorQueue(11, DT), teacher_dim=DT, student_dim=DS, temperature=0.1),
    "clusterfit": lambda: ClusterFit(DS, torch.arange(NUM_IMAGES) * 7 % 5, num_clusters=5),
    "supervised": lambda: Supervised(DS, 3),
}
WITHOUT_TEACHER = ("clusterfit", "supervised")


class Linear:
    """A teacher that is a table."""

    def __call__(self, batch: Batch) -> torch.Tensor:
        table = torch.randn(NUM_IMAGES, DT, generator=torch.Generator().manual_seed(3))
        return table[batch.index]


def student():
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(24, DS)]
    return build_network(
        NetworkSpec(name="tiny", build=lambda size: nn.Sequential(*layers), input=InputSpec(SIDE))
    )


def part(number: int, counts: tuple[int, ...]) -> Batch:
    """Return this rank's part of a batch."""
    generator = torch.Generator().manual_seed(number)
    size = sum(counts)
    views = torch.randint(0, 256, (size, 3, SIDE, SIDE), generator=generator).byte()
    index = torch.randperm(NUM_IMAGES, generator=generator)[:size]
    first = sum(counts[: distributed.rank()]) if distributed.world_size() > 1 else 0
    own = counts[distributed.rank()] if distributed.world_size() > 1 else size
    mine = slice(first, first + own)
    view = views[mine] if own else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    return Batch(view, None, index[mine] % 3, index[mine], 0, ())


def train(name: str, parts: list[tuple[int, ...]]) -> dict[str, Any]:
    """Take a step for every batch; return losses, gradients of the last one, and the state."""
    network = student()
    torch.manual_seed(2 + distributed.rank())  # the first rank's heads are everybody's
    loss = LOSSES[name]()
    teacher = None if name in WITHOUT_TEACHER else Linear()
    # The published weight of SP; the others' losses are of the order of 1.
    weight = 3000.0 if name == "sp" else 1.0
    objective = Distillation(network, teacher, loss, weight=weight, device=CPU, precision="fp32")
    rates = {"simreg": 0.01, "rkd": 0.01, "sp": 0.001, "cc-released": 0.01, "crd": 0.01}
    options = OptimizationOptions(learning_rate=rates.get(name, 0.05), optimizer="sgd")
    optimizer = build_optimizer(objective.parameters(), options)
    objective.train_mode()
    losses: list[float | None] = []
    for number, counts in enumerate(parts):
        optimizer.zero_grad()
        value = objective.loss(part(number, counts))
        losses.append(None if value is None else value.item())
        if value is not None:
            value.backward()
            optimizer.step()
        objective.after_step(stepped=value is not None)
    return {
        "losses": losses,
        "gradients": [parameter.grad for parameter in objective.parameters()],
        "state": objective.state_dict(),
    }


def all_of_them(parts: list[tuple[int, ...]]) -> dict[str, dict[str, Any]]:
    return {name: train(name, parts) for name in LOSSES}


@pytest.mark.ddp
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_are_one_process_with_the_global_batch(run_ranks, world):
    alone = all_of_them(PARTS[world])
    ranks = run_ranks(all_of_them, world, PARTS[world])
    close = {"rtol": 1e-4, "atol": 1e-5}
    for name, expected in alone.items():
        assert (expected["losses"][0] is None) == (name == "seed")
        for result in (rank[name] for rank in ranks):
            assert result["losses"] == [
                value and pytest.approx(value, rel=1e-4) for value in expected["losses"]
            ], name
            largest = max(gradient.abs().max() for gradient in expected["gradients"])
            for found, gradient in zip(result["gradients"], expected["gradients"], strict=True):
                error = (found - gradient).abs().max()
                assert error <= 2e-5 * largest, name
            torch.testing.assert_close(result["state"], expected["state"], **close)
            # Ranks must not drift apart.
            torch.testing.assert_close(result["state"], ranks[0][name]["state"], rtol=0, atol=0)
