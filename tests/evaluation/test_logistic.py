"""Logistic regression against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from distill.errors import DistillError
from distill.evaluation import linear as module
from distill.evaluation.linear import LabeledEmbeddings, logistic_evaluation, minimize
from distill.evaluation.linear_heads import StandardizedRows, fit_standardizer

CPU = torch.device("cpu")


def made(noise: float = 1.5) -> LabeledEmbeddings:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(4, 9))
    train, val = np.arange(120) % 4, np.arange(80) % 4
    return LabeledEmbeddings(
        centers[train] + noise * rng.normal(size=(120, 9)),
        train,
        centers[val] + noise * rng.normal(size=(80, 9)),
        val,
    )


@pytest.mark.parametrize("penalty", [0.1, 0.003])
def test_the_minimum_is_scikit_learns(penalty: float, monkeypatch):
    data = made()
    rows = np.arange(120)
    standardizer = fit_standardizer(data.train_features, rows, device=CPU)
    standardized = StandardizedRows(data.train_features, rows, standardizer, device=CPU)
    expected = LogisticRegression(C=1 / (penalty * 120), tol=1e-8, max_iter=1000)
    expected.fit(standardized(rows).numpy().astype(np.float64), data.train_labels)
    for values in (2**24, 9 * 50):  # at once, and in parts of which the last is smaller
        monkeypatch.setattr(module, "_VALUES_AT_ONCE", values)
        head = minimize(standardized, data.train_labels, penalty=penalty, num_classes=4)
        np.testing.assert_allclose(head.weight[0], expected.coef_, atol=3e-3)
        bias = head.bias[0] - head.bias[0].mean()  # the bias is free up to a common number
        np.testing.assert_allclose(
            bias, expected.intercept_ - expected.intercept_.mean(), atol=3e-3
        )


def test_the_penalty_is_chosen_on_held_out_rows_not_on_validation():
    data = made()
    found = logistic_evaluation(data, device=CPU)
    assert set(found.held_out) == set(module.PENALTIES)
    assert found.held_out[found.penalty] == max(found.held_out.values())
    other = LabeledEmbeddings(
        data.train_features, data.train_labels, data.val_features, data.val_labels[::-1].copy()
    )
    assert logistic_evaluation(other, device=CPU).held_out == found.held_out
    one = logistic_evaluation(data, device=CPU, penalties=[found.penalty])
    np.testing.assert_allclose(one.scores.loss, found.scores.loss, rtol=1e-5)
    assert one.held_out == {}
    assert found.scores.accuracy > 0.45


def test_held_out_rows_are_not_fitted(monkeypatch):
    fitted = []
    original = module.minimize

    def record(rows, labels, **arguments):
        fitted.append(rows.rows.tolist())
        assert labels.tolist() == made().train_labels[rows.rows].tolist()
        return original(rows, labels, **arguments)

    monkeypatch.setattr(module, "minimize", record)
    logistic_evaluation(made(), device=CPU, penalties=[0.1, 0.01])
    assert [len(rows) for rows in fitted] == [108, 108, 120]


def test_of_equal_penalties_the_stronger_is_chosen():
    found = logistic_evaluation(made(noise=0.01), device=CPU, penalties=[1e-3, 1e-2])
    assert found.held_out == {1e-2: 1.0, 1e-3: 1.0}
    assert found.penalty == 1e-2


def test_only_the_chosen_rows_count():
    data = made()
    rows = np.arange(0, 120, 3)
    part = LabeledEmbeddings(
        data.train_features[rows], data.train_labels[rows], data.val_features, data.val_labels
    )
    found = logistic_evaluation(data, device=CPU, rows=rows)
    alone = logistic_evaluation(part, device=CPU)
    assert found.penalty == alone.penalty
    np.testing.assert_allclose(found.scores.loss, alone.scores.loss, rtol=1e-5)
    with pytest.raises(DistillError, match="no class has two"):
        logistic_evaluation(data, device=CPU, rows=np.array([0, 1]))
