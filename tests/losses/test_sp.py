import numpy as np
import pytest
import torch

from distill.losses.sp import SP


def products(rows: np.ndarray) -> np.ndarray:
    found = np.array([[a @ b for b in rows] for a in rows])
    return np.array([row / np.sqrt(sum(x**2 for x in row)) for row in found])


def test_it_is_the_papers_formula(rows):
    difference = products(rows.student.numpy()) - products(rows.teacher.numpy())
    expected = sum(x**2 for x in difference.flat) / 7**2
    assert SP()(*rows).item() == pytest.approx(expected, rel=1e-12)


def test_gradients(check_gradients):
    check_gradients(SP())


def test_rotation_and_scale_of_all_cost_nothing(rows):
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    loss = SP()(rows.teacher, 3 * rows.teacher @ rotation, rows.index, rows.label)
    assert loss.item() == pytest.approx(0, abs=1e-25)
