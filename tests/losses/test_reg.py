import math

import pytest
import torch

from distill.errors import DistillError
from distill.losses.reg import Reg


def by_hand(weight, bias, teacher, student) -> float:
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        mapped = [
            sum(w * x for w, x in zip(row, s, strict=True)) + b
            for row, b in zip(weight, bias, strict=True)
        ]
        norms = [math.sqrt(sum(x * x for x in vector)) for vector in (mapped, t)]
        pairs = zip(mapped, t, strict=True)
        total += sum((m / norms[0] - x / norms[1]) ** 2 for m, x in pairs)
    return total / len(teacher)


def test_it_is_the_papers_formula(rows):
    loss = Reg(5, 4).double()
    head = [parameter.tolist() for parameter in loss.parameters()]
    expected = by_hand(*head, rows.teacher.tolist(), rows.student.tolist())
    assert loss(*rows).item() == pytest.approx(expected, rel=1e-12)


def test_gradients(check_gradients):
    check_gradients(Reg(5, 4).double())


def test_only_directions_count(rows):
    loss = Reg(4, 4).double()
    torch.nn.init.eye_(loss.head.weight)
    torch.nn.init.zeros_(loss.head.bias)
    student = rows.student
    assert loss(7 * student, student, rows.index, rows.label).item() == pytest.approx(0)
    assert loss(-student, student, rows.index, rows.label).item() == pytest.approx(4)


def test_mistakes_are_told_at_once(rows):
    with pytest.raises(DistillError, match="student_dim is 0; it must be at least 1"):
        Reg(5, 0)
    with pytest.raises(DistillError, match="teacher has 6 rows and student 7"):
        Reg(5, 4)(rows.teacher[1:], rows.student, rows.index, rows.label)
    with pytest.raises(DistillError, match=r"student has shape \(7,\)"):
        Reg(5, 4)(rows.teacher, rows.student[:, 0], rows.index, rows.label)
