"""Logistic regression: the minimum, the choice of the penalty, what memory does not hold."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from distill.errors import DistillError
from distill.evaluation import linear as module
from distill.evaluation.linear import LabeledEmbeddings, logistic_evaluation
from distill.evaluation.linear_heads import fit_logistic


def made(noise: float = 1.5, classes: int = 4) -> list[np.ndarray]:
    """Training rows, their classes, validation rows, theirs."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(classes, 9))
    train, val = np.arange(120) % classes, np.arange(80) % classes
    rows = [centers[x] + noise * rng.normal(size=(len(x), 9)) for x in (train, val)]
    return [rows[0], train, rows[1], val]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("penalty", [0.1, 0.003])
def test_the_minimum_of_the_formula(penalty: float, classes: int):
    features, labels, *_ = made(classes=classes)
    heads, standardizer = fit_logistic(
        features, labels, np.arange(120), num_classes=classes, penalties=[penalty]
    )
    rows = standardizer(torch.from_numpy(features)).double()

    def objective(flat):
        flat = torch.tensor(flat, requires_grad=True)
        weight, bias = flat[:-classes].view(classes, 9), flat[-classes:]
        loss = torch.nn.functional.cross_entropy(rows @ weight.T + bias, torch.from_numpy(labels))
        loss = loss + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss.item(), flat.grad.numpy()

    found = minimize(objective, np.zeros(10 * classes), jac=True, method="L-BFGS-B", tol=1e-12).x
    expected = rows @ torch.from_numpy(found[:-classes]).view(classes, 9).T + found[-classes:]
    logits = heads.logits(rows.float())[:, 0]
    torch.testing.assert_close(
        logits.log_softmax(1), expected.log_softmax(1).float(), atol=0.02, rtol=0
    )


def evaluated(arguments, **options):
    result = logistic_evaluation(LabeledEmbeddings(*arguments), **options)
    return result.scores["_logistic"], result.held_out


def test_the_penalty_is_chosen_on_held_out_rows_not_on_validation():
    arguments = made()
    scores, held_out = evaluated(arguments)
    assert list(held_out) == list(module.PENALTIES)
    shuffled = [*arguments[:3], arguments[3][::-1].copy()]
    assert evaluated(shuffled)[1] == held_out
    best = max(held_out, key=held_out.get)
    alone, none = evaluated(arguments, penalties=[best])
    assert none == {}
    assert alone.accuracy == scores.accuracy > 0.45


def test_of_equal_penalties_the_stronger_is_chosen(monkeypatch):
    fits = []

    def record(features, labels, rows, *, penalties, **options):
        fits.append((penalties, len(rows)))
        return fit_logistic(features, labels, rows, penalties=penalties, **options)

    monkeypatch.setattr(module, "fit_logistic", record)
    _, held_out = evaluated(made(noise=0.01), penalties=[1e-3, 1e-2])
    assert held_out == {1e-2: 1.0, 1e-3: 1.0}
    assert fits == [([1e-2, 1e-3], 108), ([1e-2], 120)]


def test_only_the_chosen_rows_count():
    arguments, rows = made(), np.arange(0, 120, 3)
    part = [arguments[0][rows], arguments[1][rows], *arguments[2:]]
    scores, held_out = evaluated(arguments, rows=rows)
    alone, same = evaluated(part)
    assert held_out == same
    np.testing.assert_allclose(scores.loss, alone.loss, rtol=1e-4)
    with pytest.raises(DistillError, match="no class has two"):
        evaluated(arguments, rows=np.array([0, 1]))


def test_a_class_without_training_rows_is_never_predicted():
    features, labels, val, val_labels = made()
    scores, _ = evaluated([features, labels, val, val_labels], rows=np.flatnonzero(labels != 2))
    assert scores.per_class[2] == 0
    assert scores.accuracy > 0.3


def test_more_rows_than_memory_is_given():
    many = SimpleNamespace(
        train_features=SimpleNamespace(shape=(10**6, 2048)),
        train_labels=None,
        rows=lambda rows: rows,
    )
    with pytest.raises(DistillError, match=r"7.6 GiB of them, .* at most 2 GiB; use --method sgd"):
        logistic_evaluation(many, rows=np.arange(10**6))


def test_the_command(measure, capsys):
    measured = measure("linear", "--method", "logistic")
    assert list(measured) == ["linear_accuracy_logistic"]
    assert measured["linear_accuracy_logistic"] > 1 / 3
    assert "penalty  held out" in capsys.readouterr().out
