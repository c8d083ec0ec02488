import math

import numpy as np
import pytest
import torch

from distill.errors import DistillError
from distill.losses.cc import CC, CCReleased


def kernel(x: np.ndarray, y: np.ndarray, gamma: float, order: int) -> float:
    cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    series = sum((2 * gamma * cosine) ** p / math.factorial(p) for p in range(order + 1))
    return math.exp(-2 * gamma) * series


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (1.1, 3)])
def test_it_is_the_papers_formula(rows, gamma, order):
    total = 0.0
    for i in range(7):
        for j in range(7):
            of_student, of_teacher = (
                kernel(side[i].numpy(), side[j].numpy(), gamma, order)
                for side in (rows.student, rows.teacher)
            )
            total += (of_student - of_teacher) ** 2
    assert CC(gamma=gamma, order=order)(*rows).item() == pytest.approx(total / 49, rel=1e-12)


def test_the_series_is_of_the_gaussian_kernel(rows):
    similarities = CC(gamma=0.4, order=12)._similarities(rows.student)
    unit = rows.student / rows.student.norm(dim=1, keepdim=True)
    torch.testing.assert_close(similarities, torch.exp(-0.4 * torch.cdist(unit, unit) ** 2))


def test_gradients(check_gradients):
    check_gradients(CC())


def test_equal_relations_cost_nothing(rows):
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    loss = CC()(rows.teacher, 3 * rows.teacher @ rotation, rows.index, rows.label)
    assert loss.item() == pytest.approx(0, abs=1e-25)


def test_the_released_loss_is_as_described(rows):
    loss = CCReleased(5, 4, head_dim=6).double()
    maps = []
    for head, side in ((loss.student_head, rows.student), (loss.teacher_head, rows.teacher)):
        weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
        maps.append([weight @ row + bias for row in side.numpy()])
    difference = [abs(s - t) for s, t in zip(*maps, strict=True)]
    total = sum(float(difference[i] @ difference[i + 1]) for i in range(6))
    assert loss(*rows).item() == pytest.approx(total / 6, rel=1e-12)


def test_gradients_of_the_released_loss(check_gradients):
    check_gradients(CCReleased(5, 4, head_dim=3).double())


def test_mistakes_are_told_at_once():
    with pytest.raises(DistillError, match="gamma is -1; it must be positive"):
        CC(gamma=-1)
    with pytest.raises(DistillError, match="order is 0"):
        CC(order=0)
    with pytest.raises(DistillError, match="head_dim is 0"):
        CCReleased(5, 4, head_dim=0)
