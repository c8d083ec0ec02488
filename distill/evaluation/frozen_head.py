"""Heads that are fitted on clean training embeddings and then predict under any shift.

`nn` predicts the class of the nearest training image (L2-normalized embeddings, exact search);
`linear` the logistic regression of `distill.evaluation.logistic` with a penalty of 1 / N, which is
scikit-learn's C = 1. A prediction can be restricted to some classes, as ImageNet-A and -R do: the
logits of the others are left out, or their training images. Deliberate limit: everything is in
memory on the CPU.

Shapes: N training images, M queries, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
import torch

from distill.errors import DistillError
from distill.evaluation.logistic import minimize
from distill.evaluation.nearest_neighbour import (
    exact_index,
    l2_normalized,
    require_labels,
    require_same_width,
)
from distill.evaluation.standardize import StandardizedRows, fit_standardizer, require_finite

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
        require_finite(features)
        self._classes, numbers = np.unique(labels, return_inverse=True)
        rows, device = np.arange(len(features)), torch.device("cpu")
        self._standardizer = fit_standardizer(features, rows, device=device)
        standardized = StandardizedRows(features, rows, self._standardizer, device=device)
        self._heads = minimize(
            standardized,
            numbers.astype(np.int64),
            penalty=1 / len(features),
            num_classes=len(self._classes),
            max_iterations=_MAX_ITERATIONS,
        )

    def predict(self, features: np.ndarray, *, among: np.ndarray | None = None) -> np.ndarray:
        """See `Head.predict`."""
        require_same_width(self._standardizer.mean[None], features)
        require_finite(features)
        columns = np.arange(len(self._classes))
        if among is not None:
            columns = np.flatnonzero(np.isin(self._classes, among))
            _require_some(columns)
        logits = self._heads.logits(self._standardizer(torch.from_numpy(features)))[:, 0]
        return self._classes[columns][logits[:, columns].argmax(1).numpy()]


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
