import math

import pytest
import torch
from torch import nn

from distill.config import OptimizationOptions
from distill.training.optimizer import build_optimizer, build_schedule, learning_rate_factor


def options(**changes) -> OptimizationOptions:
    values = {"epochs": 10, "learning_rate": 0.4, "warmup_epochs": 0.0, **changes}
    return OptimizationOptions(**values)


def test_cosine_falls_from_one_to_zero():
    factor = learning_rate_factor(options(), steps_per_epoch=10)
    assert factor(0) == 1
    assert factor(50) == pytest.approx(0.5)
    assert factor(25) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert factor(100) == pytest.approx(0)
    assert factor(200) == pytest.approx(0)


def test_warm_up_rises_linearly_and_may_be_a_fraction_of_an_epoch():
    factor = learning_rate_factor(options(warmup_epochs=0.5), steps_per_epoch=10)
    assert [factor(step) for step in range(6)] == pytest.approx(
        [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]
    )


def test_published_steps_fall_after_epochs_90_and_120():
    published = options(schedule="step", epochs=130, milestones=(90, 120), decay_factor=0.2)
    factor = learning_rate_factor(published, steps_per_epoch=5)
    by_epoch = [factor(epoch * 5) for epoch in range(130)]
    assert by_epoch[:90] == [1] * 90
    assert by_epoch[90:120] == pytest.approx([0.2] * 30)
    assert by_epoch[120:] == pytest.approx([0.04] * 10)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_frozen_parameters_are_left_out(name, kind):
    trained, frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    optimizer = build_optimizer(
        [*trained.parameters(), *frozen.parameters()], options(optimizer=name)
    )
    assert isinstance(optimizer, kind)
    assert len(optimizer.param_groups[0]["params"]) == 2
    assert optimizer.param_groups[0]["lr"] == 0.4
    assert optimizer.param_groups[0]["weight_decay"] == 1e-4


def test_the_schedule_drives_the_optimizer():
    optimizer = build_optimizer(nn.Linear(2, 2).parameters(), options())
    schedule = build_schedule(optimizer, options(), steps_per_epoch=1)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.2 * (1 + math.cos(math.pi * i / 10)) for i in range(10)])
