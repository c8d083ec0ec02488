"""Heads that are fitted on clean training embeddings and then predict under any shift.

`nn` predicts the class of the nearest training image (L2-normalized embeddings, exact search);
`linear` a logistic regression on L2-normalized, then standardized embeddings. A prediction can be
restricted to some classes, as ImageNet-A and -R do: the logits of the others are left out, or
their training images. Deliberate limit: the logistic regression is scikit-learn's (L-BFGS, L2
penalty 1), in memory: for 100,000 images and more use `nn`.

Shapes: N training images, M queries, D width, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np

from distill.errors import DistillError
from distill.evaluation.nearest_neighbour import (
    exact_index,
    l2_normalized,
    require_labels,
    require_same_width,
)

HeadName = Literal["nn", "linear"]
_MAX_ITERATIONS = 1000


class Head(Protocol):
    """Predicts classes from embeddings."""

    def predict(self, features: np.ndarray, *, among: np.ndarray | None = None) -> np.ndarray:
        """Return the class (M,) int64 of every embedding (M, D), one of `among` if given.

        Raises:
            DistillError: Embeddings of another width or not finite; no training image of `among`.
        """


class NearestNeighbourHead:
    """The class of the nearest training image.

    Args:
        features: (N, D), any scale.
        labels: (N,) classes.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        self._features, self._labels = l2_normalized(features), labels
        self._index = exact_index(self._features, metric="inner product")

    def predict(self, features: np.ndarray, *, among: np.ndarray | None = None) -> np.ndarray:
        """See `Head.predict`."""
        require_same_width(self._features, features)
        if among is None:
            return self._labels[self._search(self._index, features)]
        rows = np.flatnonzero(np.isin(self._labels, among))
        _require_some(rows)
        index = exact_index(self._features[rows], metric="inner product")
        return self._labels[rows][self._search(index, features)]

    @staticmethod
    def _search(index: object, features: np.ndarray) -> np.ndarray:
        return index.search(l2_normalized(features), 1)[1][:, 0]  # type: ignore[attr-defined]


class LinearHead:
    """Logistic regression.

    Args:
        features: (N, D), any scale.
        labels: (N,) classes, two or more.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        normalized = l2_normalized(features)
        self._mean, std = normalized.mean(0), normalized.std(0)
        self._std = np.where(std > 0, std, 1)
        self._model = LogisticRegression(max_iter=_MAX_ITERATIONS)
        with warnings.catch_warnings():  # what is left to gain by then moves no prediction
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.fit(self._standardized(features), labels)

    def predict(self, features: np.ndarray, *, among: np.ndarray | None = None) -> np.ndarray:
        """See `Head.predict`."""
        require_same_width(self._mean[None], features)
        logits = self._model.decision_function(self._standardized(features))
        if logits.ndim == 1:  # two classes: scikit-learn gives the second one's margin
            logits = np.stack([-logits, logits], axis=1)
        classes = self._model.classes_
        columns = np.arange(len(classes))
        if among is not None:
            columns = np.flatnonzero(np.isin(classes, among))
            _require_some(columns)
        return classes[columns][logits[:, columns].argmax(1)]

    def _standardized(self, features: np.ndarray) -> np.ndarray:
        return (l2_normalized(features) - self._mean) / self._std


def fit_head(name: HeadName, features: np.ndarray, labels: np.ndarray) -> Head:
    """Fit a head on clean training embeddings.

    Args:
        name: `nn` or `linear`.
        features: (N, D), any scale.
        labels: (N,) classes, at least 0.

    Raises:
        DistillError: No labels, one class only, or embeddings that are not finite.
    """
    require_labels(labels, what="the training images")
    heads: dict[str, Callable[[np.ndarray, np.ndarray], Head]] = {
        "nn": NearestNeighbourHead,
        "linear": LinearHead,
    }
    if name not in heads:
        raise DistillError(f"the head is {name!r}; it must be nn or linear")
    return heads[name](features, labels)


def _require_some(found: np.ndarray) -> None:
    if len(found) == 0:
        raise DistillError(
            "no training image is of the classes that predictions are restricted to; train and "
            "measure on data that have classes in common"
        )
