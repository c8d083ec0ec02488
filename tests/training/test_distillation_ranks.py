"""A student with BatchNorm trained over ranks, stopped and continued on other numbers of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distill import distributed
from distill.config import OptimizationOptions
from distill.data.loader import Batch
from distill.losses.anchors import AnchorQueue
from distill.losses.compress import CompRess
from distill.losses.dataset_anchors import DatasetAnchors
from distill.losses.residual_information import ResidualInformation
from distill.models.networks import InputSpec, NetworkSpec, build_network
from distill.training.callbacks import Callback
from distill.training.checkpoints import Progress, load_newest, save_checkpoint
from distill.training.distillation import Distillation
from distill.training.loop import LoopSettings, TrainState, fit
from distill.training.optimizer import build_optimizer, build_schedule
from distill.training.teacher import CachedTeacher

CPU = torch.device("cpu")
K, DT, DS, SIDE = 31, 10, 6, 10
RUNS = [("one-queue", "ranks"), ("two-queue", "ranks")]
RUNS += [("two-queue-momentum", "ranks"), ("two-queue-momentum", "none")]
RUNS += [("one-queue-dataset", "ranks"), ("two-queue-dataset", "ranks")]
RUNS += [("one-queue-dataset-regression", "ranks")]
RUNS += [("two-queue-momentum-dataset", "none"), ("two-queue-momentum-crops", "ranks")]
NUM_IMAGES = 40
# The first one fills; of 2 images two ranks of four have none; of 1 no rank learns; 23 wrap around.
BATCHES = [7, 2, 9, 1, 8, 2, 23, 2, 12, 7]
BROKEN = 4  # the batch whose first image cannot be read
STOPS = [3, 7, len(BATCHES)]
# Adam's first steps would turn rounding into steps.
OPTIONS = OptimizationOptions(
    epochs=1, learning_rate=0.05, warmup_epochs=0.0, optimizer="sgd", milestones=(), schedule="step"
)


def student():
    torch.manual_seed(1)
    # Maps of 3 x 3: a BatchNorm of two values answers +-1 and makes its gradient of rounding alone.
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2)]
    layers += [nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [nn.Linear(8, DS)]
    spec = NetworkSpec(
        name="tiny", build=lambda size: nn.Sequential(*layers), input=InputSpec(SIDE)
    )
    return build_network(spec)


class InMemory:
    """Embeddings of the images, by index."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table
        self.embedding_dim = table.shape[1]

    def rows(self, index: np.ndarray) -> torch.Tensor:
        return self.table[torch.from_numpy(index)]


def build(variant: str, sharding: str) -> TrainState:
    one_queue = variant.startswith("one-queue")
    shard = (distributed.rank(), distributed.world_size()) if sharding == "ranks" else (0, 1)
    network = student()
    rows = torch.randn(NUM_IMAGES, DT, generator=torch.Generator().manual_seed(2))
    widths = (DT, None if one_queue else DS)
    if "-dataset" in variant:
        queue = DatasetAnchors(np.arange(NUM_IMAGES), InMemory(rows).rows, *widths, shard=shard)
    else:
        queue = AnchorQueue(K, *widths, shard=shard)
    torch.manual_seed(distributed.rank())  # the first rank's weights are everybody's
    objective = Distillation(
        network,
        CachedTeacher(InMemory(rows), CPU),
        CompRess(
            queue,
            temperature=0.2,
            student_temperature=0.3,
            projection=nn.Linear(DS, DT if one_queue else DS),
            momentum=0.9 if "momentum" in variant else None,
            compression=ResidualInformation(0.1) if variant.endswith("-crops") else None,
            regression_share=0.2 if variant.endswith("-regression") else 0.0,
        ),
        num_views=3 if variant.endswith("-crops") else 1,
        device=CPU,
        precision="fp32",
    )
    optimizer = build_optimizer(objective.parameters(), OPTIONS)
    return TrainState(objective, optimizer, build_schedule(optimizer, OPTIONS, steps_per_epoch=100))


class Losses(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.values.append(metrics["loss"])


def part(number: int, variant: str) -> Batch:
    """Return this rank's part of a batch, as the loader would."""
    generator = torch.Generator().manual_seed(number)
    size = BATCHES[number]
    if variant.endswith("-regression") and size == 2:
        size = 6  # two images, standardized, are +-1: their gradient would be of rounding alone
    shape = (size, 3, SIDE, SIDE)
    views = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    index = torch.randperm(NUM_IMAGES, generator=generator)[: len(views)]
    mine = np.array_split(range(len(views)), distributed.world_size())[distributed.rank()]
    nothing = torch.empty((0, 3, 0, 0), dtype=torch.uint8)
    mine = mine[1:] if number == BROKEN and mine[0] == 0 else mine
    view = views[mine] if len(mine) else nothing
    has_crops = variant.endswith("-crops")
    further = [view.flip(3), view.flip(2)] if has_crops else []
    label = torch.full((len(mine),), -1)
    return Batch(view, None, label, index[mine], 0, (), further_views=further)


def sitting(folder: Path, stop: int, variant: str, sharding: str) -> dict[str, Any]:
    """Train from the newest checkpoint to the batch before `stop`; save, tell everything."""
    folder.mkdir(exist_ok=True)
    distributed.barrier()
    state, progress = build(variant, sharding), Progress()
    found = load_newest(folder)
    if found is not None:
        progress = found.progress
        state.load_state_dict(found.state, found.shards)
    objective, losses = state.objective, Losses()
    fit(
        state,
        [part(n, variant) for n in range(progress.batch, stop)],
        LoopSettings(num_epochs=1, num_images=100, batches_per_epoch=100, log_every=1),
        progress,
        callbacks=losses,
        on_bad_images=lambda names: None,
        evaluate=lambda epoch: {},
        save=lambda accuracy: None,
    )
    save_checkpoint(folder, progress, state.state_dict(), objective.shard())
    metrics = objective.metrics()
    anchors = objective.criterion.queue.anchors()
    return {
        "losses": losses.values,
        "step": progress.step,
        "metrics": metrics,
        "gradients": [parameter.grad for parameter in objective.parameters()],
        "state": objective.state_dict(),
        "anchors": vars(anchors),
        "num_held": len(anchors),
    }


def sittings(folder: Path, stop: int) -> dict[str, dict[str, Any]]:
    return {
        f"{variant}-{sharding}": sitting(folder / f"{variant}-{sharding}", stop, variant, sharding)
        for variant, sharding in RUNS
    }


@pytest.mark.ddp
@pytest.mark.parametrize("worlds", [(4, 2, 1), (1, 3, 1)])
def test_a_run_goes_on_with_any_number_of_ranks_as_in_one_process(run_ranks, tmp_path, worlds):
    (tmp_path / "alone").mkdir()
    (tmp_path / "ranks").mkdir()
    for world, stop in zip(worlds, STOPS, strict=True):
        alone = sittings(tmp_path / "alone", stop)
        folder = tmp_path / "ranks"
        ranks = [sittings(folder, stop)] if world == 1 else run_ranks(sittings, world, folder, stop)
        for name, expected in alone.items():
            found = [result[name] for result in ranks]
            check(found, expected, sharded=name.endswith("-ranks"))


def check(found: list[dict[str, Any]], alone: dict[str, Any], *, sharded: bool) -> None:
    world = len(found)
    close = {"rtol": 1e-5, "atol": 1e-5}
    for rank, result in enumerate(found):
        assert result["step"] == alone["step"]
        assert result["metrics"] == pytest.approx(alone["metrics"], rel=1e-5)
        assert result["losses"] == pytest.approx(alone["losses"], rel=1e-5, abs=1e-6)
        torch.testing.assert_close(result["gradients"], alone["gradients"], **close)
        torch.testing.assert_close(result["state"], alone["state"], **close)
        for name, rows in alone["anchors"].items():
            expected = rows[rank::world] if sharded else rows
            torch.testing.assert_close(result["anchors"][name], expected, **close)
        assert result["num_held"] <= -(-alone["num_held"] // (world if sharded else 1))
    for result in found[1:]:  # ranks must not drift apart
        torch.testing.assert_close(result["gradients"], found[0]["gradients"], rtol=0, atol=0)
