"""The result of cluster alignment, which explains itself.

Shapes: K clusters, C classes of training images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distill.evaluation.cluster_agreement import ClusterAgreement

_NO_CLASS = (
    "stand for no class, because there are more clusters than classes; the {lost} validation "
    "images in them count as wrong"
)
_NO_CLUSTER = (
    "have no cluster, because there are fewer clusters than classes; their images count as wrong"
)
_EMPTY = "hold no training image, so that no image says what they stand for"
_FORCED = (
    "stand for a class that none of their training images is of: the mapping is one to one, and "
    "nothing better was left"
)


@dataclass(frozen=True)
class Alignment:
    """Which class every cluster stands for, fitted on training images, and how right that is.

    Attributes:
        accuracy: Share of validation images whose class is that of their cluster.
        train_accuracy: The same of the training images.
        mapping: (K,) int64, the class of every cluster, -1 for none.
        classes: (C,) int64, the classes of the columns of `contingency`, sorted.
        contingency: (K, C) int64, training images of every cluster and class.
        val_sizes: (K,) int64, validation images of every cluster.
        train: NMI, ARI and purity of the training images.
        val: Those of the validation images.
    """

    accuracy: float
    train_accuracy: float
    mapping: np.ndarray
    classes: np.ndarray
    contingency: np.ndarray
    val_sizes: np.ndarray
    train: ClusterAgreement
    val: ClusterAgreement

    @cached_property
    def sizes(self) -> np.ndarray:
        """(K,) int64, training images of every cluster."""
        return self.contingency.sum(axis=1)

    @property
    def purity(self) -> np.ndarray:
        """(K,) float64, the share of the commonest class of every cluster; 0 of an empty one."""
        return self.contingency.max(axis=1) / np.maximum(self.sizes, 1)

    @property
    def commonest(self) -> np.ndarray:
        """(K,) int64, the class that most images of every cluster are of, -1 of an empty one."""
        return np.where(self.sizes > 0, self.classes[self.contingency.argmax(axis=1)], -1)

    @property
    def matched_share(self) -> np.ndarray:
        """(K,) float64, the share of the class that every cluster stands for; 0 for none."""
        return self._of_matched_class / np.maximum(self.sizes, 1)

    @property
    def empty_clusters(self) -> np.ndarray:
        """Clusters without training images; they stand for the classes that were left over."""
        return np.flatnonzero(self.sizes == 0)

    @property
    def unmatched_clusters(self) -> np.ndarray:
        """Clusters that stand for no class, because there are more clusters than classes."""
        return np.flatnonzero(self.mapping < 0)

    @property
    def unmatched_classes(self) -> np.ndarray:
        """Classes that no cluster stands for, because there are fewer clusters than classes."""
        return np.setdiff1d(self.classes, self.mapping)

    @property
    def forced_clusters(self) -> np.ndarray:
        """Clusters that hold images, but none of the class that was left for them."""
        is_forced = (self.mapping >= 0) & (self.sizes > 0) & (self._of_matched_class == 0)
        return np.flatnonzero(is_forced)

    @property
    def _of_matched_class(self) -> np.ndarray:
        columns = np.searchsorted(self.classes, np.maximum(self.mapping, self.classes[0]))
        counts = self.contingency[np.arange(len(self.mapping)), columns]
        return np.where(self.mapping >= 0, counts, 0)

    def metrics(self) -> dict[str, float]:
        """Return the numbers by name, those of the validation images, in [0, 1]."""
        return {
            "cluster_alignment": self.accuracy,
            "cluster_nmi": self.val.nmi,
            "cluster_ari": self.val.ari,
            "cluster_purity": self.val.purity,
        }

    def notes(self) -> list[str]:
        """Return a sentence for everything that a reader of the accuracy should know."""
        lost = self.val_sizes[self.unmatched_clusters].sum()
        facts = (
            (self.unmatched_clusters, "clusters", _NO_CLASS.format(lost=lost)),
            (self.unmatched_classes, "classes", _NO_CLUSTER),
            (self.empty_clusters, "clusters", _EMPTY),
            (self.forced_clusters, "clusters", _FORCED),
        )
        total = dict(zip(("clusters", "classes"), self.contingency.shape, strict=True))
        return [
            f"{len(which)} of {total[kind]} {kind} {what}"
            for which, kind, what in facts
            if which.size
        ]
