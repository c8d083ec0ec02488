from itertools import combinations

import numpy as np
import pytest

from distill.evaluation.clusters import cluster_agreement, contingency


def measured(clusters, classes):
    clusters, classes = np.asarray(clusters), np.asarray(classes)
    return cluster_agreement(
        contingency(clusters, classes, clusters.max() + 2, classes.max() + 3)  # some are empty
    )


@pytest.mark.parametrize("num_clusters", [2, 5, 40])
def test_scikit_learn_finds_the_same(num_clusters: int):
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    rng = np.random.default_rng(num_clusters)
    classes = rng.integers(0, 7, size=300)
    clusters = np.where(rng.uniform(size=300) < 0.5, classes, rng.integers(0, 40, size=300))
    clusters %= num_clusters
    found = measured(clusters, classes)
    assert found.nmi == pytest.approx(normalized_mutual_info_score(classes, clusters), abs=1e-12)
    assert found.ari == pytest.approx(adjusted_rand_score(classes, clusters), abs=1e-12)


def test_a_hand_worked_case():
    # Clusters {a, a, b} and {b, b}. Pairs together in both: aa, bb; in clusters 3 + 1, in classes
    # 1 + 3; of 10. Expected 4 * 4 / 10 = 1.6: (2 - 1.6) / (4 - 1.6) = 1 / 6.
    clusters, classes = [0, 0, 0, 1, 1], [0, 0, 1, 1, 1]
    together = [
        sum(names[i] == names[j] for i, j in combinations(range(5), 2))
        for names in (clusters, classes)
    ]
    assert together == [4, 4]
    found = measured(clusters, classes)
    assert found.ari == pytest.approx(1 / 6)
    assert found.purity == pytest.approx(4 / 5)
    entropy = -(0.4 * np.log(0.4) + 0.6 * np.log(0.6))  # of both
    joint = -(0.4 * np.log(0.4) + 0.2 * np.log(0.2) + 0.4 * np.log(0.4))
    assert found.nmi == pytest.approx((2 * entropy - joint) / entropy)


def test_extremes():
    names = np.arange(12) // 3
    same = measured(3 - names, names)
    assert (same.nmi, same.ari, same.purity) == (pytest.approx(1), 1, 1)
    independent = measured(np.arange(16) // 4, np.arange(16) % 4)
    assert independent.nmi == pytest.approx(0, abs=1e-12)
    assert independent.nmi >= 0
    assert independent.ari < 0
    assert independent.purity == 0.25
    assert measured([0, 0], [1, 1]) == measured([0], [0])  # nothing to tell apart
    assert measured([0, 0], [1, 1]).nmi == measured([0, 0], [1, 1]).ari == 1
    assert measured(np.arange(9) // 3, np.arange(9) % 3).nmi == 0  # -1e-16 by rounding
    one_class = measured([0, 1, 2], [0, 0, 0])
    assert (one_class.nmi, one_class.ari, one_class.purity) == (0, 0, 1)


def test_millions_of_images_do_not_overflow():
    small = np.array([[5, 1], [2, 9]])
    huge = small * 10**8
    found = cluster_agreement(huge)
    # With so many copies the pairs of an image with itself no longer matter.
    n = small.sum()
    both, a, b = ((x / n) ** 2 for x in (small, small.sum(1), small.sum(0)))
    expected = (both.sum() - a.sum() * b.sum()) / ((a.sum() + b.sum()) / 2 - a.sum() * b.sum())
    assert found.ari == pytest.approx(expected, rel=1e-6)
    assert found.nmi == pytest.approx(cluster_agreement(small).nmi)
