"""How much clusters and classes have in common, whatever their names: NMI, ARI and purity.

All three are functions of the contingency table, so that nothing is sorted or compared per image.

- Normalized mutual information: I(cluster; class) over the arithmetic mean of the two entropies,
  scikit-learn's choice (Strehl and Ghosh, JMLR 2002, take the geometric mean).
- Adjusted Rand index (Hubert and Arabie, J. Classification 1985).
- Purity: the share of images that are of the commonest class of their cluster. It grows with the
  number of clusters, to 1 when every image is one.

Shapes: N images, K clusters, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClusterAgreement:
    """What clusters and classes have in common.

    Attributes:
        nmi: Normalized mutual information, in [0, 1].
        ari: Adjusted Rand index, 0 on average for clusters by chance, at most 1.
        purity: In (0, 1].
    """

    nmi: float
    ari: float
    purity: float


def contingency(
    assignment: np.ndarray, labels: np.ndarray, num_clusters: int, num_classes: int
) -> np.ndarray:
    """Count the images of every cluster and class.

    Args:
        assignment: (N,) clusters, 0..K-1.
        labels: (N,) classes, 0..C-1.
        num_clusters: K.
        num_classes: C.

    Returns:
        (K, C) int64.
    """
    assert len(assignment) == len(labels)
    assert ((assignment >= 0) & (assignment < num_clusters)).all()
    assert ((labels >= 0) & (labels < num_classes)).all()
    cells = assignment.astype(np.int64) * num_classes + labels
    counts = np.bincount(cells, minlength=num_clusters * num_classes)
    return counts.reshape(num_clusters, num_classes)


def cluster_agreement(contingency: np.ndarray) -> ClusterAgreement:
    """Measure a contingency table.

    Args:
        contingency: (K, C) counts, at least one image; clusters and classes may be empty.
    """
    purity = contingency.max(axis=1).sum() / contingency.sum()
    return ClusterAgreement(
        nmi=normalized_mutual_information(contingency),
        ari=adjusted_rand_index(contingency),
        purity=float(purity),
    )


def normalized_mutual_information(contingency: np.ndarray) -> float:
    """Return I / ((H(cluster) + H(class)) / 2); 1 where there is one cluster and one class.

    Args:
        contingency: (K, C) counts.
    """
    entropies = [_entropy(contingency.sum(axis=axis)) for axis in (0, 1)]
    if sum(entropies) == 0:
        return 1.0
    information = sum(entropies) - _entropy(contingency.ravel())
    # Differences of entropies are off by rounding: independent tables give -1e-16.
    return float(np.clip(2 * information / sum(entropies), 0, 1))


def adjusted_rand_index(contingency: np.ndarray) -> float:
    """Return (pairs together in both - expected) / (mean of pairs together in each - expected).

    Args:
        contingency: (K, C) counts.
    """
    both = _pairs(contingency)
    in_clusters, in_classes = (_pairs(contingency.sum(axis=axis)) for axis in (1, 0))
    total = _pairs(contingency.sum(keepdims=True))
    # Times 2 `total`, in whole numbers: products of pairs pass 2^63 at a million images.
    numerator = 2 * (both * total - in_clusters * in_classes)
    denominator = (in_clusters + in_classes) * total - 2 * in_clusters * in_classes
    return numerator / denominator if denominator else 1.0


def _pairs(counts: np.ndarray) -> int:
    counts = counts.astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
