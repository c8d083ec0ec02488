import numpy as np
import pytest

from distill.losses.reg_bn import RegBN

EPS = 1e-5


def standardized(matrix: np.ndarray) -> np.ndarray:
    out = np.empty_like(matrix)
    for column in range(matrix.shape[1]):
        values = matrix[:, column]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        out[:, column] = [(value - mean) / np.sqrt(variance + EPS) for value in values]
    return out


def test_it_is_the_formula(rows):
    loss = RegBN(5, 4).double()
    weight, bias = (parameter.detach().numpy() for parameter in loss.parameters())
    mapped = np.array([weight @ s + bias for s in rows.student.numpy()])
    difference = standardized(mapped) - standardized(rows.teacher.numpy())
    expected = sum(x**2 for x in difference.flat) / difference.size
    assert loss(*rows).item() == pytest.approx(expected, rel=1e-10)


def test_gradients(check_gradients):
    check_gradients(RegBN(5, 4).double())


def test_it_sees_the_batch_alone_in_any_mode(rows):
    loss = RegBN(5, 4).double()
    trained = loss(*rows)
    assert loss.eval()(*rows).item() == trained.item()
    assert set(loss.state_dict()) == {"head.weight", "head.bias"}


def test_mean_and_scale_of_a_dimension_do_not_matter(rows):
    loss = RegBN(5, 4).double()
    moved = rows._replace(teacher=rows.teacher * 100 + 5)
    assert loss(*moved).item() == pytest.approx(loss(*rows).item(), rel=1e-4)
