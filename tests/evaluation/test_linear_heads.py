"""Heads against PyTorch's own linear layer, SGD, scheduler and cross-entropy."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill.errors import DistillError
from distill.evaluation.linear_heads import (
    PUBLISHED_SCHEDULE,
    PUBLISHED_SETTING,
    HeadBatch,
    HeadSetting,
    LinearHeads,
    LinearSchedule,
    initial_heads,
    train_heads,
)

CPU = torch.device("cpu")
SCHEDULE = LinearSchedule(num_epochs=6, batch_size=8, decay_epochs=(2, 4))


def batches(num_epochs: int, *, dim: int = 5, classes: int = 3) -> list[HeadBatch]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(20, dim, generator=generator)
    labels = torch.randint(classes, (20,), generator=generator)
    return [
        HeadBatch(epoch, rows[part], labels[part])
        for epoch in range(num_epochs)
        for part in (slice(0, 8), slice(8, 16), slice(16, 20))
    ]


def start(num_heads: int) -> LinearHeads:
    return initial_heads(num_heads, num_classes=3, dim=5, seed=0, device=CPU)


def trained_by_pytorch(setting: HeadSetting, schedule: LinearSchedule) -> torch.nn.Linear:
    head = torch.nn.Linear(5, 3)
    first = start(1)
    head.load_state_dict({"weight": first.weight[0], "bias": first.bias[0]})
    optimizer = torch.optim.SGD(
        head.parameters(),
        lr=setting.learning_rate,
        momentum=schedule.momentum,
        weight_decay=setting.weight_decay,
    )
    scheduler = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, milestones=list(schedule.decay_epochs), gamma=schedule.decay_factor
    )
    epoch = 0
    for batch in batches(schedule.num_epochs):
        if batch.epoch > epoch:
            scheduler.step()
            epoch = batch.epoch
        optimizer.zero_grad()
        F.cross_entropy(head(batch.rows), batch.labels).backward()
        optimizer.step()
    return head


def test_every_head_of_a_sweep_is_what_pytorch_trains_alone():
    settings = [HeadSetting(0.01, 1e-4), HeadSetting(0.3, 0.0), HeadSetting(0.1, 0.05)]
    heads = train_heads(start(3), settings, batches(6), SCHEDULE)
    for g, setting in enumerate(settings):
        alone = trained_by_pytorch(setting, SCHEDULE)
        torch.testing.assert_close(heads.weight[g], alone.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(heads.bias[g], alone.bias, rtol=1e-5, atol=1e-6)


def test_a_head_that_diverges_leaves_the_others_alone():
    both = [HeadSetting(1e30, 1.0), PUBLISHED_SETTING]
    heads = train_heads(start(2), both, batches(6), SCHEDULE)
    alone = train_heads(start(1), [PUBLISHED_SETTING], batches(6), SCHEDULE)
    assert not heads.weight[0].isfinite().all()
    torch.testing.assert_close(heads.weight[1], alone.weight[0])


def test_the_published_schedule():
    assert (PUBLISHED_SETTING.learning_rate, PUBLISHED_SETTING.weight_decay) == (0.01, 1e-4)
    assert (PUBLISHED_SCHEDULE.num_epochs, PUBLISHED_SCHEDULE.batch_size) == (40, 256)
    assert PUBLISHED_SCHEDULE.momentum == 0.9
    factors = [PUBLISHED_SCHEDULE.factor(epoch) for epoch in (0, 14, 15, 29, 30, 39)]
    np.testing.assert_allclose(factors, [1, 1, 0.1, 0.1, 0.01, 0.01])


def test_heads_start_equal_and_by_the_seed():
    heads = initial_heads(2, num_classes=4, dim=100, seed=3, device=CPU)
    assert torch.equal(heads.weight[0], heads.weight[1])
    assert torch.equal(heads.bias[0], heads.bias[1])
    assert 0.09 < heads.weight.abs().max() <= 0.1
    other = initial_heads(1, num_classes=4, dim=100, seed=4, device=CPU)
    assert not torch.equal(heads.weight[0], other.weight[0])


def test_logits_are_those_of_each_head():
    heads = LinearHeads(torch.randn(2, 3, 5), torch.randn(2, 3))
    rows = torch.randn(4, 5)
    for g in range(2):
        alone = F.linear(rows, heads.weight[g], heads.bias[g])
        torch.testing.assert_close(heads.logits(rows)[:, g], alone)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_learning_rates_that_cannot_be(rate: float):
    with pytest.raises(DistillError, match="a learning rate is"):
        HeadSetting(rate, 0.0)


@pytest.mark.parametrize("decay", [-1e-4, float("nan"), float("inf")])
def test_weight_decays_that_cannot_be(decay: float):
    with pytest.raises(DistillError, match="a weight decay is"):
        HeadSetting(0.1, decay)
