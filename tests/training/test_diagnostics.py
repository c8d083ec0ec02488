"""Numbers that say how training goes: spread, collapse, waiting, the held-out check."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from distill import distributed
from distill.data.sources import hold_out, open_images
from distill.embeddings.embed import DatasetEmbedder
from distill.errors import DistillError
from distill.training import diagnostics
from distill.training.diagnostics import (
    DEAD_AFTER,
    CollapseWatch,
    DataWatch,
    EmbeddingSpread,
    HoldoutCheck,
    effective_rank,
)
from teachers.load import load_teacher


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


HEALTHY = {"loss": 3.0, "spread": 0.3, "dead_units": 0.5, "loss_over_chance": 0.9}


@pytest.mark.parametrize(
    ("step", "values", "num_epochs", "message"),
    [
        (50, HEALTHY, 2, None),
        (50, {"loss": 1.0}, 9, None),  # an objective that tells nothing of it
        (49, {**HEALTHY, "spread": 0.0}, 0, None),
        (50, {**HEALTHY, "spread": 0.0199}, 0, "spread 0.02 of at most 1, 50% of its units"),
        (50, {**HEALTHY, "spread": 0.02}, 0, None),
        (50, {**HEALTHY, "loss_over_chance": 1.2}, 0, None),
        (50, {**HEALTHY, "loss_over_chance": 1.2}, 1, None),
        (50, {**HEALTHY, "loss_over_chance": 1.2}, 2, "its loss is 1.20 times"),
        (50, {**HEALTHY, "loss_over_chance": 0.98}, 2, None),
    ],
)
def test_when_it_speaks(step, values, num_epochs, message):
    said = CollapseWatch().look(step, values, num_epochs=num_epochs)
    assert (said is None) == (message is None)
    if message is not None:
        assert said.startswith(f"at step {step} the network has ")
        assert message in said
        for remedy in ("--optimizer muon", "--warmup-epochs", "--learning-rate"):
            assert remedy in said


def test_it_speaks_once():
    watch = CollapseWatch()
    assert watch.look(60, {"spread": 0.0}) is not None
    assert watch.look(70, {"spread": 0.0}) is None


@pytest.mark.parametrize(
    ("share", "seconds", "speaks"),
    [(0.11, 31, True), (0.1, 31, False), (0.5, 29, False), (0.0, 0, False)],
)
def test_it_speaks_of_long_waits(share, seconds, speaks):
    message = DataWatch().look(share, seconds, num_workers=3)
    assert (message is not None) == speaks
    if speaks:
        assert message.startswith("11% of the epoch went to waiting")
        assert "--num-workers (now 3)" in message


def test_waiting_is_said_once():
    watch = DataWatch()
    assert watch.look(0.05, 100, num_workers=1) is None
    assert watch.look(0.9, 100, num_workers=1) is not None
    assert watch.look(0.9, 100, num_workers=1) is None


@pytest.fixture
def embedder(make_folder):
    data = open_images(make_folder(num_train=20))
    return DatasetEmbedder(
        data=data,
        train_index=np.arange(len(data.train)),
        val_index=np.arange(len(data.val)),
        device=torch.device("cpu"),
        precision="fp32",
        num_workers=0,
    )


@dataclasses.dataclass
class Held:
    """Which images are trained on and which are held out."""

    trained: np.ndarray
    held_out: np.ndarray


def check_of(embedder, trained, held_out, *, every=1) -> HoldoutCheck:
    return HoldoutCheck(embedder, Held(trained, held_out), every=every, num_epochs=5, seed=0)


def test_held_out_images_are_looked_up_among_the_trained(embedder):
    without_val = dataclasses.replace(embedder, data=dataclasses.replace(embedder.data, val=None))
    check = check_of(without_val, *hold_out(embedder.data.train, 0.2, seed=0), every=2)
    network = load_teacher("pixels")
    due = [epoch for epoch in range(1, 6) if check(network, epoch) == {"holdout_nn_accuracy": 1}]
    assert due == [2, 4, 5]


def test_held_out_images_do_not_find_themselves(embedder, monkeypatch):
    sizes = []

    def counted(*sides: np.ndarray) -> float:
        sizes.extend(len(side) for side in sides)
        return 0.5

    monkeypatch.setattr(diagnostics, "nn_accuracy", counted)
    check = check_of(embedder, *hold_out(embedder.data.train, 0.2, seed=0))
    assert check(load_teacher("pixels"), 5) == {"holdout_nn_accuracy": 0.5}
    assert sizes == [48, 48, 12, 12]  # embeddings and labels of both sides


def test_both_sides_are_capped(embedder, monkeypatch):
    monkeypatch.setattr(diagnostics, "MAX_INDEXED", 10)
    monkeypatch.setattr(diagnostics, "MAX_QUERIES", 4)
    check = check_of(embedder, *hold_out(embedder.data.train, 0.2, seed=0))
    assert (len(check.indexed), len(check.queries)) == (10, 4)
    assert not set(check.indexed) & set(check.queries)


@pytest.mark.parametrize(
    ("trained", "held_out", "every", "reason"),
    [
        (range(60), [], 1, "no image is held out"),
        (range(10), [10, 11], 1, "are of 1 class"),
        (range(50), range(50, 60), 0, "it is off"),
    ],
)
def test_what_keeps_it_from_measuring(embedder, capsys, trained, held_out, every, reason):
    trained, held_out = np.array(trained), np.array(held_out, dtype=int)
    check = check_of(embedder, trained, held_out, every=every)
    assert reason in check.unavailable_reason
    assert check(load_teacher("pixels"), 5) == {}
    assert reason in capsys.readouterr().out


def test_the_embedder_says_what_is_missing(embedder):
    assert embedder.unavailable_reason() is None
    without_val = dataclasses.replace(embedder, data=dataclasses.replace(embedder.data, val=None))
    assert "has no validation images" in without_val.unavailable_reason()
    with pytest.raises(DistillError, match="has no validation images"):
        without_val.embed_both(load_teacher("pixels"), what="teacher")
    one_class = dataclasses.replace(embedder, train_index=np.arange(20))
    assert "are of 1 class" in one_class.unavailable_reason()
