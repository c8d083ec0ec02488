"""The loop on an objective of one weight, whose every event is written down."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.config import OptimizationOptions
from distill.data.loader import Batch
from distill.errors import NonFiniteLossError
from distill.training.callbacks import RunLog
from distill.training.checkpoints import Progress
from distill.training.diagnostics import EmbeddingSpread
from distill.training.loop import LoopSettings, TrainState, fit
from distill.training.optimizer import build_optimizer, build_schedule

OPTIONS = OptimizationOptions(epochs=2, learning_rate=0.5, warmup_epochs=0.0, optimizer="sgd")
SETTINGS = LoopSettings(num_epochs=2, num_images=6, batches_per_epoch=3, log_every=1)


class Slope:
    """Its loss is `slope` times the weight, its first batch only fills."""

    def __init__(self, slopes: list[float]) -> None:
        self.weight = nn.Parameter(torch.zeros(1))
        self.slopes = iter(slopes)
        self.events: list[tuple] = []

    def train_mode(self):
        self.events.append(("train",))

    def parameters(self):
        return iter([self.weight])

    def accepts(self, row_counts):
        return sum(row_counts) >= 2

    def loss(self, batch):
        slope = next(self.slopes)
        self.events.append(("loss", round(self.weight.item(), 6)))
        return None if slope == 0 else (slope * self.weight).sum()

    def after_step(self, *, stepped):
        self.events.append(("after", stepped, round(self.weight.item(), 6)))

    def metrics(self):
        return {}

    def state_dict(self):
        return {}

    def shard(self):
        return None

    def load_state_dict(self, state, shards):
        pass


def batches(sizes: list[int], bad: tuple[str, ...] = ()) -> list[Batch]:
    return [
        Batch(torch.zeros(n, 3, 1, 1), None, torch.zeros(n), torch.arange(n), 0, bad) for n in sizes
    ]


def run(tmp_path: Path, slopes, sizes=(2,) * 6, settings=SETTINGS, options=OPTIONS, bad=()):
    objective = Slope(slopes)
    optimizer = build_optimizer(objective.parameters(), options)
    state = TrainState(objective, optimizer, build_schedule(optimizer, options, steps_per_epoch=3))
    progress, ended, told = Progress(), [], []
    log = RunLog(tmp_path)
    try:
        stopped = fit(
            state,
            batches(list(sizes), bad),
            settings,
            progress,
            callbacks=log,
            on_bad_images=told.extend,
            evaluate=lambda epoch: ended.append(epoch) or {},
            save=lambda score: None,
        )
    finally:
        log.close()
    assert stopped is None
    return objective, state, progress, ended, told


def test_events_come_in_order_and_the_schedule_follows_the_steps(tmp_path: Path):
    objective, state, progress, ended, _ = run(tmp_path, [0, 1, 1, 1, 1, 1])
    factor = state.schedule.lr_lambdas[0]
    weight, velocity, expected = 0.0, 0.0, [("train",), ("loss", 0.0), ("after", False, 0.0)]
    for step in range(5):
        expected.append(("loss", round(weight, 6)))
        velocity = 0.9 * velocity + 1 + OPTIONS.weight_decay * weight
        weight -= 0.5 * factor(step) * velocity
        expected.append(("after", True, round(weight, 6)))
        if step in (1, 4):  # the filling batch is the epoch's first
            expected.append(("train",))
    for found, wanted in zip(objective.events, expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)
    assert (progress.step, progress.epoch, progress.batch) == (5, 2, 0)
    assert ended == [1, 2]


def test_gradients_are_clipped_on_request(tmp_path: Path):
    clipped = LoopSettings(2, 6, 3, log_every=1, clip_grad_norm=0.25)
    objective, *_ = run(tmp_path, [100] * 6, settings=clipped)
    assert objective.events[2] == ("after", True, pytest.approx(-0.5 * 0.25, abs=1e-5))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(tmp_path: Path, value: float):
    objective = Slope([1, 1, value])
    with torch.no_grad():
        objective.weight.fill_(1)
    optimizer = build_optimizer(objective.parameters(), OPTIONS)
    state = TrainState(objective, optimizer, build_schedule(optimizer, OPTIONS, steps_per_epoch=3))
    log = RunLog(tmp_path)
    with pytest.raises(NonFiniteLossError, match=r"at step 3 \(epoch 1\)"):
        fit(
            state,
            batches([2, 2, 2]),
            SETTINGS,
            Progress(),
            callbacks=log,
            on_bad_images=lambda names: None,
            evaluate=lambda epoch: {},
            save=lambda score: None,
        )
    log.close()
    assert objective.events[-1][0] == "loss"
    assert objective.weight.isfinite().all()


def test_batches_with_fewer_than_two_images_are_passed_over(tmp_path: Path):
    objective, _, progress, _, told = run(
        tmp_path, [1] * 6, sizes=(2, 1, 0, 2, 2, 2), bad=("a.png",)
    )
    assert progress.step == 4
    assert len([event for event in objective.events if event[0] == "loss"]) == 4
    assert told == ["a.png"] * 6
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    events = [line.get("event") for line in lines]
    assert events == [None, "skipped", "skipped", "epoch", None, None, None, "epoch"]


def test_the_log_tells_the_rate_of_the_step_not_of_the_next(tmp_path: Path):
    _, state, *_ = run(tmp_path, [1] * 6)
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    factor = state.schedule.lr_lambdas[0]
    rates = [line["learning_rate"] for line in lines if "event" not in line]
    assert rates == pytest.approx([0.5 * factor(step) for step in range(6)])
    assert rates[0] == 0.5
    assert rates[-1] > 0


def test_a_stop_between_checkpoints_saves_what_the_epoch_has_measured(tmp_path: Path):
    objective = Slope([1] * 6)
    optimizer = build_optimizer(objective.parameters(), OPTIONS)
    state = TrainState(objective, optimizer, build_schedule(optimizer, OPTIONS, steps_per_epoch=3))
    saved: list[float | None] = []

    def measure(epoch: int) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {"holdout_nn_accuracy": 0.9}

    log = RunLog(tmp_path)
    stopped = fit(
        state,
        batches([2] * 6),
        replace(SETTINGS, checkpoint_every=2),
        Progress(),
        callbacks=log,
        on_bad_images=lambda names: None,
        evaluate=measure,
        save=saved.append,
    )
    log.close()
    assert stopped == "SIGTERM"
    assert saved == [0.9]


class Constant(Slope):
    """It embeds images, all of them alike or by their brightness."""

    def __init__(self, slope: float) -> None:
        super().__init__([])
        self.network = nn.Linear(3, 4)
        with torch.no_grad():
            self.network.weight.fill_(slope)

    def parameters(self):
        return self.network.parameters()

    def loss(self, batch):
        return 0 * self.network(batch.view.flatten(1)).sum()


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_a_collapse_is_said_once_and_logged(tmp_path: Path, capsys, slope):
    objective, num_batches = Constant(slope), 70
    optimizer = build_optimizer(objective.parameters(), OPTIONS)
    schedule = build_schedule(optimizer, OPTIONS, steps_per_epoch=num_batches)
    views = torch.linspace(-3, 3, 6).reshape(2, 3, 1, 1)
    batch = Batch(views, None, torch.zeros(2), torch.arange(2), 0, ())
    log = RunLog(tmp_path)
    with EmbeddingSpread(objective.network) as spread:
        fit(
            TrainState(objective, optimizer, schedule, spread),
            [batch] * num_batches,
            LoopSettings(1, 2 * num_batches, num_batches, log_every=10),
            Progress(),
            callbacks=log,
            on_bad_images=lambda names: None,
            evaluate=lambda epoch: {},
            save=lambda score: None,
        )
    log.close()
    said = [line for line in capsys.readouterr().out.splitlines() if "collapsed" in line]
    assert len(said) == (slope == 0)
    assert all("at step 50 " in line for line in said)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 1 + 7 + 1  # the first step, every tenth, the epoch
    for line in lines:
        assert {"spread", "effective_rank", "dead_units"} <= line.keys()
        assert (line["spread"] < 1e-6) == (slope == 0)
        assert line["dead_units"] == (slope == 0)
