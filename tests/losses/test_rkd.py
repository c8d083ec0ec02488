import numpy as np
import pytest
import torch

from distill.errors import DistillError
from distill.losses.rkd import RKD


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def distances(rows: np.ndarray) -> np.ndarray:
    found = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in rows] for a in rows])
    return found / (found.sum() / (len(rows) * (len(rows) - 1)))


def cosine(rows: np.ndarray, i: int, j: int, k: int) -> float:
    a, b = rows[i] - rows[j], rows[k] - rows[j]
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / norms if norms > 0 else 0.0


def by_hand(teacher: np.ndarray, student: np.ndarray, weights: tuple[float, float]) -> float:
    number = range(len(teacher))
    difference = distances(student) - distances(teacher)
    distance = sum(huber(x) for x in difference.flat) / len(teacher) ** 2
    angle = sum(
        huber(cosine(student, i, j, k) - cosine(teacher, i, j, k))
        for i in number
        for j in number
        for k in number
    )
    return weights[0] * distance + weights[1] * angle / len(teacher) ** 3


@pytest.mark.parametrize("weights", [(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)])
def test_it_is_the_papers_formula(rows, weights):
    loss = RKD(distance_weight=weights[0], angle_weight=weights[1])
    expected = by_hand(rows.teacher.numpy(), rows.student.numpy(), weights)
    assert loss(*rows).item() == pytest.approx(expected, rel=1e-10)


def test_gradients(check_gradients):
    check_gradients(RKD())


def test_place_rotation_and_scale_cost_nothing(rows):
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    moved = 3 * rows.teacher @ rotation + 10
    assert RKD()(rows.teacher, moved, rows.index, rows.label).item() == pytest.approx(0, abs=1e-20)


def test_equal_images_have_a_finite_gradient(rows):
    student = rows.student.clone()
    student[1] = student[0]
    expected = by_hand(rows.teacher.numpy(), student.numpy(), (25, 50))
    student.requires_grad_()
    loss = RKD()(rows.teacher, student, rows.index, rows.label)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    assert student.grad.isfinite().all()
    all_equal = torch.ones(7, 4, dtype=torch.float64, requires_grad=True)
    RKD()(rows.teacher, all_equal, rows.index, rows.label).backward()
    assert all_equal.grad.isfinite().all()


def test_float32_far_from_the_origin(rows):
    near = RKD()(*rows)
    teacher, student = (rows.teacher + 300).float(), (rows.student - 300).float()
    assert RKD()(teacher, student, rows.index, rows.label).item() == pytest.approx(
        near.item(), rel=1e-3
    )


def test_mistakes_are_told_at_once():
    with pytest.raises(DistillError, match="angle_weight is -1; it must be at least 0"):
        RKD(angle_weight=-1)
