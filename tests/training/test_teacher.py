"""Teachers as the objective sees them: a table of each view, or a network that runs."""

import numpy as np
import torch
from torch import nn

from distill.data.loader import Batch
from distill.models.networks import wrap_module
from distill.training.teacher import CachedTeacher, OnlineTeacher

CPU = torch.device("cpu")


class InMemory:
    """A view's embeddings, and what was asked of them."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table, self.asked = table, []
        self.embedding_dim = table.shape[1]

    def rows(self, index: np.ndarray) -> torch.Tensor:
        self.asked.append(index.tolist())
        return self.table[torch.from_numpy(index)]


def batch(index, epoch=0) -> Batch:
    nothing = torch.empty(len(index), 3, 0, 0, dtype=torch.uint8)
    return Batch(nothing, None, torch.tensor(index), torch.tensor(index).long(), epoch, ())


def test_the_rows_of_the_images():
    view = InMemory(torch.randn(30, 5))
    teacher = CachedTeacher(view, CPU)
    index = [7, 29, 0, 7]
    assert torch.equal(teacher(batch(index, epoch=3)), view.table[index])
    assert teacher(batch([])).shape == (0, 5)


def test_a_network_that_runs_gives_no_gradient():
    network = wrap_module(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), image_size=2)
    views = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
    rows = OnlineTeacher(network, CPU, precision="fp32", batch_size=2)(
        batch([0, 1, 2])._replace(view=views)
    )
    assert rows.shape == (3, 5)
    assert not rows.requires_grad
