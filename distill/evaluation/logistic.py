"""Multinomial logistic regression on frozen embeddings: a fast check without a schedule.

Rows are normalized and standardized as for the SGD heads (`distill.evaluation.linear_heads`);
scikit-learn's L-BFGS minimizes

    mean cross-entropy + penalty / 2 x |weight|^2      (the bias is free)

The penalty is chosen on held-out training rows, from strong to weak, each search starting where the
one before ended. Deliberate limits: all rows are in memory, 2 GiB at most; a search ends after
`MAX_ITERATIONS`, which weak penalties on separable rows reach.

Shapes: N training rows, D width, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from distill.embeddings.search import Rows
from distill.errors import DistillError
from distill.evaluation.label_subsets import held_out_rows
from distill.evaluation.linear_heads import (
    ClassScores,
    LinearHeads,
    StandardizedRows,
    Standardizer,
    fit_standardizer,
    score_heads,
)

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
MAX_ITERATIONS = 200
_MAX_BYTES = 2 * 2**30  # of training rows as float32
_CPU = torch.device("cpu")


def logistic_evaluation(
    train_features: Rows,
    train_labels: np.ndarray,
    val_features: Rows,
    val_labels: np.ndarray,
    *,
    rows: np.ndarray,
    num_classes: int,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> tuple[ClassScores, dict[float, float]]:
    """Fit logistic regression to training rows and score it on the validation rows.

    Args:
        train_features: (N, D), any scale, finite.
        train_labels: (N,) classes, 0..C-1.
        val_features: (M, D), likewise.
        val_labels: (M,) classes, 0..C-1.
        rows: The training rows to learn from.
        num_classes: C.
        penalties: To choose from, positive; one alone is taken without a choice.
        seed: Of what is held out, from 0.

    Returns:
        The scores on the validation rows, and the accuracy on held-out training rows by penalty,
        the strongest first; empty with one penalty. Of equally accurate ones the strongest counts.

    Raises:
        DistillError: Too many rows, or rows that cannot be split to choose a penalty.
    """
    num_bytes = 4 * len(rows) * train_features.shape[1]
    if num_bytes > _MAX_BYTES:
        raise DistillError(
            f"logistic regression holds all training rows in memory, {num_bytes / 2**30:.1f} GiB "
            f"of them, and takes at most {_MAX_BYTES / 2**30:.0f} GiB; use --method sgd, the "
            "default, which reads them batch by batch"
        )
    penalties = sorted(penalties, reverse=True)
    held_out_accuracy: dict[float, float] = {}
    if len(penalties) > 1:
        fitted, held_out = held_out_rows(train_labels[rows], seed=seed)
        regression = LogisticRegression(train_features, train_labels, rows[fitted], num_classes)
        for penalty in penalties:
            (scores,) = regression.fit(penalty).score(train_features, train_labels, rows[held_out])
            held_out_accuracy[penalty] = scores.accuracy
    best = max(penalties, key=lambda one: held_out_accuracy.get(one, 0.0))
    regression = LogisticRegression(train_features, train_labels, rows, num_classes)
    everything = np.arange(len(val_labels))
    (scores,) = regression.fit(best).score(val_features, val_labels, everything)
    return scores, held_out_accuracy


class LogisticRegression:
    """scikit-learn's logistic regression on standardized rows; every fit starts at the last one.

    Args:
        features: (N, D), any scale, finite.
        labels: (N,) classes, 0..C-1.
        rows: The rows to learn from, of two classes or more.
        num_classes: C; a class without rows is never predicted.
        max_iterations: After which a search ends.

    Attributes:
        standardizer: With the statistics of the rows.
        heads: What was fitted last; G = 1.
    """

    standardizer: Standardizer
    heads: LinearHeads

    def __init__(
        self,
        features: Rows,
        labels: np.ndarray,
        rows: np.ndarray,
        num_classes: int,
        *,
        max_iterations: int = MAX_ITERATIONS,
    ) -> None:
        from sklearn.linear_model import LogisticRegression

        self.standardizer = fit_standardizer(features, rows, device=_CPU)
        standardized = StandardizedRows(features, rows, self.standardizer, device=_CPU)
        self._rows = standardized(np.arange(len(rows))).numpy()
        self._labels, self._num_classes = labels[rows], num_classes
        self._model: Any = LogisticRegression(max_iter=max_iterations, warm_start=True, tol=1e-4)

    def fit(self, penalty: float) -> LogisticRegression:
        """Minimize with a penalty, positive; return self."""
        from sklearn.exceptions import ConvergenceWarning

        is_binary = len(np.unique(self._labels)) == 2
        # Of two classes scikit-learn has one weight, their difference: half of the penalty.
        self._model.C = (2 if is_binary else 1) / (penalty * len(self._labels))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.fit(self._rows, self._labels)
        weight = torch.zeros(1, self._num_classes, self._rows.shape[1])
        bias = torch.full((1, self._num_classes), -1e9)  # of a class without rows
        weight_of, bias_of = self._model.coef_, self._model.intercept_
        if is_binary:
            weight_of, bias_of = np.concatenate([0 * weight_of, weight_of]), [0.0, *bias_of]
        weight[0, self._model.classes_] = torch.as_tensor(weight_of, dtype=torch.float32)
        bias[0, self._model.classes_] = torch.as_tensor(bias_of, dtype=torch.float32)
        self.heads = LinearHeads(weight, bias)
        return self

    def score(self, features: Rows, labels: np.ndarray, rows: np.ndarray) -> list[ClassScores]:
        """Score what was fitted last on some rows; the one score is in a list."""
        standardized = StandardizedRows(features, rows, self.standardizer, device=_CPU)
        return score_heads(self.heads, standardized, labels[rows])
