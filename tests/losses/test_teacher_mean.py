"""The teacher's mean: hand-made numbers, a sample of many, any order of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.losses import AnchorQueue, CompRess, compress
from distill.losses.compress import mean_direction


class Table:
    def __init__(self, values: np.ndarray) -> None:
        self.values = torch.from_numpy(values.astype(np.float32))
        self.embedding_dim = values.shape[1]

    def rows(self, index: np.ndarray) -> torch.Tensor:
        return self.values[torch.from_numpy(index)]


def table(number: int, width: int = 8) -> Table:
    generator = np.random.default_rng(0)
    scale = generator.uniform(0.1, 10, (number, 1))
    return Table(scale * (generator.standard_normal((number, width)) + 3))


def test_the_mean_is_of_unit_vectors():
    rows = Table(np.array([[3.0, 0.0], [0.0, 0.5], [-9.0, -9.0]]))
    mean = mean_direction(rows, np.array([0, 1]), seed=0)
    torch.testing.assert_close(mean, torch.tensor([0.5, 0.5]))
    loss = CompRess(AnchorQueue(2, 2), teacher_mean=mean)
    assert "teacher_mean" not in loss.state_dict()  # nothing of the teacher is saved
    loss.enqueue(rows.values[:2])
    half = 0.5**0.5
    torch.testing.assert_close(
        loss.queue.anchors().teacher, torch.tensor([[half, -half], [-half, half]])
    )


def test_centered_rows_of_all_images_cancel_and_tell_more_apart():
    rows, images = table(500), np.arange(500)
    unit = torch.nn.functional.normalize(rows.values, dim=1)
    centered = unit - mean_direction(rows, images, seed=0)
    torch.testing.assert_close(centered.mean(0), torch.zeros(8), atol=1e-6, rtol=0)
    before = torch.nn.functional.normalize(rows.rows(images), dim=1)
    assert (before @ before.T).mean() > 0.8
    after = torch.nn.functional.normalize(centered, dim=1)
    assert abs((after @ after.T).mean()) < 0.05


def test_the_order_of_images_and_chunks_does_not_matter(monkeypatch):
    rows, images = table(1000), np.random.default_rng(1).permutation(1000)
    whole = mean_direction(rows, np.arange(1000), seed=0)
    monkeypatch.setattr(compress, "_CHUNK", 7)
    torch.testing.assert_close(mean_direction(rows, images, seed=0), whole, atol=1e-7, rtol=0)


def test_of_many_images_a_sample_is_taken_that_follows_the_seed(monkeypatch):
    monkeypatch.setattr(compress, "MAX_MEAN_ROWS", 50)
    rows, images = table(1000), np.arange(1000)
    first, again, other = (mean_direction(rows, images, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first @ other / (first.norm() * other.norm()) == pytest.approx(1, abs=0.01)
