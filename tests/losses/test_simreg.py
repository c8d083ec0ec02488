import numpy as np
import pytest
from torch import nn

from distill.losses.simreg import SimReg


def layer(linear: nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()


def normalized_and_cut(norm: nn.BatchNorm1d, x: np.ndarray) -> np.ndarray:
    scaled = (x - x.mean(0)) / np.sqrt(x.var(0) + norm.eps)
    weight, bias = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    return np.maximum(scaled * weight + bias, 0)


def test_it_is_the_papers_formula(rows):
    loss = SimReg(5, 4).double()
    for norm in (loss.head[1], loss.head[5]):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
    linear = [module for module in loss.head if isinstance(module, nn.Linear)]
    assert [module.weight.shape for module in linear] == [(8, 4), (4, 8), (8, 4), (5, 8)]
    x = normalized_and_cut(loss.head[1], layer(linear[0], rows.student.numpy()))
    x = normalized_and_cut(loss.head[5], layer(linear[2], layer(linear[1], x)))
    predicted = layer(linear[3], x)
    total = 0.0
    for p, t in zip(predicted, rows.teacher.numpy(), strict=True):
        total += ((p / np.linalg.norm(p) - t / np.linalg.norm(t)) ** 2).sum()
    assert loss(*rows).item() == pytest.approx(total / 7, rel=1e-10)


def test_gradients(check_gradients):
    check_gradients(SimReg(5, 4).double())
