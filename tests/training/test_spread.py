"""Spread, effective rank and dead units against their definitions, in one process and in two."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from distill import distributed
from distill.training.diagnostics import DEAD_AFTER, EmbeddingSpread, effective_rank


def looked_at(*batches: torch.Tensor) -> dict[str, float]:
    spread = EmbeddingSpread(nn.Identity())
    for rows in batches:
        spread.add(rows)
    return spread.read()


def test_the_spread_is_that_of_unit_rows():
    rows = np.random.default_rng(0).normal(size=(40, 7)) + 1
    unit = rows / np.sqrt((rows**2).sum(1, keepdims=True))
    expected = math.sqrt(7) * np.sqrt(np.mean(unit.std(axis=0) ** 2))
    assert looked_at(torch.from_numpy(rows))["spread"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("rows", "spread", "rank"),
    [
        (torch.ones(5, 4), 0, 0),
        (torch.tensor([[1.0, 0, 0], [5, 0, 0], [-1, 0, 0], [-2, 0, 0]]), 1, 1),
        (torch.cat([torch.eye(6), -torch.eye(6)]), 1, 6),
        (torch.zeros(4, 3), 0, 0),
    ],
)
def test_the_extremes(rows, spread, rank):
    found = looked_at(rows)
    assert found["spread"] == pytest.approx(spread, abs=1e-6)
    assert found["effective_rank"] == pytest.approx(rank, abs=1e-4)


@pytest.mark.parametrize("shape", [(30, 5), (5, 30)])
def test_the_rank_is_the_entropy_of_the_covariances_eigenvalues(shape):
    rows = np.random.default_rng(1).normal(size=shape) * np.linspace(1, 4, shape[1])
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    shares = values[values > 1e-9] / values.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert effective_rank(torch.from_numpy(rows)) == pytest.approx(expected)
    assert 1 <= expected <= min(shape[0] - 1, shape[1])


def test_a_unit_is_dead_when_it_has_been_constant_in_ten_batches():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.rand(4, 5, generator=generator) for _ in range(DEAD_AFTER + 3)]
    for number, rows in enumerate(batches):
        rows[:, 0] = 0
        rows[:, 1] = number  # it differs between batches, and tells no images apart
        if number:
            rows[:, 2] = 0  # alive in the first batch
        if number != 5:
            rows[:, 3] = 0
    assert looked_at(*batches[:3])["dead_units"] == pytest.approx(3 / 5)  # of all it has seen
    assert looked_at(*batches[:DEAD_AFTER])["dead_units"] == pytest.approx(2 / 5)
    assert looked_at(*batches[: DEAD_AFTER + 1])["dead_units"] == pytest.approx(3 / 5)


def test_it_looks_at_training_passes_alone_and_leaves_nothing_behind():
    network = nn.Linear(3, 2)
    images = torch.randn(6, 3)
    with EmbeddingSpread(network) as spread:
        network.eval()(images)
        with torch.no_grad():
            network.train()(images)
        assert spread.read() == {}
        output = network(images)
        read = spread.read()
    assert read == looked_at(output.detach())
    assert not network._forward_hooks


def test_what_cannot_be_told_is_left_out():
    assert looked_at(torch.ones(1, 3)) == {}
    assert looked_at(torch.tensor([[1.0, 2], [float("nan"), 0]])) == {}


def of_ranks(counts: list[int]) -> dict[str, float]:
    spread, start = EmbeddingSpread(nn.Identity()), sum(counts[: distributed.rank()])
    for rows in global_batches(sum(counts)):
        spread.add(rows[start : start + counts[distributed.rank()]])
    return spread.read()


def global_batches(size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(size, 6, generator=generator).relu() for _ in range(3)]
    for rows in batches:
        rows[:, 4] = 0
    return batches


@pytest.mark.ddp
@pytest.mark.parametrize("counts", [[4, 5], [9, 0]])
def test_ranks_see_what_one_process_sees(run_ranks, counts):
    alone = looked_at(*global_batches(9))
    assert alone["dead_units"] == pytest.approx(1 / 6)
    for found in run_ranks(of_ranks, 2, counts):
        assert found == pytest.approx(alone, rel=1e-5)
