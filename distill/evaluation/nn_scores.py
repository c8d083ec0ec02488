"""What nearest neighbours got right and wrong: by k, by class, and which class for which.

Shapes: M queries, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassScore:
    """How one class fared.

    Attributes:
        label: The class.
        num_images: Queries that are of it.
        accuracy: Share of them that were predicted so.
        confused_with: The class that the wrong ones were predicted as most often; None when none
            was wrong.
        confused_share: Share of the class's queries that were taken for it.
    """

    label: int
    num_images: int
    accuracy: float
    confused_with: int | None
    confused_share: float


@dataclass(frozen=True)
class NearestNeighbourScores:
    """Predictions of several k from one search.

    Attributes:
        labels: (M,) the classes that queries are of, at least 0.
        predicted: (M,) predictions by k.
        recall: Share of the true neighbours that the search found, measured on a sample; None when
            it was exact.
    """

    labels: np.ndarray
    predicted: Mapping[int, np.ndarray]
    recall: float | None = None

    def accuracy(self, k: int) -> float:
        """Return the share of queries that are predicted right."""
        return float(np.mean(self.predicted[k] == self.labels))

    def accuracies(self) -> dict[int, float]:
        """Return the accuracy of every k."""
        return {k: self.accuracy(k) for k in self.predicted}

    def classes(self, k: int) -> np.ndarray:
        """Return the classes (C,) that queries are of or are predicted as, sorted."""
        return np.union1d(self.labels, self.predicted[k])

    def confusion(self, k: int) -> np.ndarray:
        """Return counts (C, C) int64: rows are the true classes, columns the predicted ones.

        Rows and columns are in the order of `classes`.
        """
        classes = self.classes(k)
        rows, columns = (np.searchsorted(classes, x) for x in (self.labels, self.predicted[k]))
        counts = np.bincount(rows * len(classes) + columns, minlength=len(classes) ** 2)
        return counts.reshape(len(classes), len(classes))

    def by_class(self, k: int) -> list[ClassScore]:
        """Return a row for every class that queries are of, in the order of labels."""
        classes, confusion = self.classes(k), self.confusion(k)
        return [
            _class_score(int(label), place, counts, classes)
            for place, (label, counts) in enumerate(zip(classes, confusion, strict=True))
            if counts.any()
        ]


def _class_score(label: int, place: int, counts: np.ndarray, classes: np.ndarray) -> ClassScore:
    wrong = counts.copy()
    wrong[place] = 0
    total, most = int(counts.sum()), int(wrong.argmax())
    return ClassScore(
        label=label,
        num_images=total,
        accuracy=float(counts[place] / total),
        confused_with=int(classes[most]) if wrong[most] else None,
        confused_share=float(wrong[most] / total),
    )
