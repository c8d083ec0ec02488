from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import DistillError
from distill.evaluation.clusters import (
    align_clusters,
    alignment_accuracy,
    cluster_alignment,
    contingency,
    kmeans,
    match_clusters,
)
from distill.evaluation.kmeans import Clustering


@pytest.mark.parametrize("suffix", ["", "_with_empty"])
def test_digits_agree_with_the_original_program(oracles, suffix: str):
    oracle = np.load(oracles / "evaluation_digits.npz")
    train, val = oracle[f"train_clusters{suffix}"], oracle[f"val_clusters{suffix}"]
    table = contingency(train, oracle["train_labels"], 10, 10)
    assert (table.sum(axis=1) == 0).any() == bool(suffix)
    mapping = match_clusters(table)
    if not suffix:
        assert list(mapping) == list(oracle["cluster_to_class"])
    found = alignment_accuracy(mapping, train, oracle["train_labels"])
    assert found == oracle[f"train_alignment{suffix}"]
    found = alignment_accuracy(mapping, val, oracle["val_labels"])
    assert found == oracle[f"val_alignment{suffix}"]


def test_contingency_counts():
    rng = np.random.default_rng(0)
    assignment, labels = rng.integers(0, 4, size=99), rng.integers(0, 3, size=99)
    table = contingency(assignment, labels, 5, 6)
    assert table.dtype == np.int64
    assert table.shape == (5, 6)
    for cluster in range(5):
        for label in range(6):
            expected = sum((assignment == cluster) & (labels == label))
            assert table[cluster, label] == expected


def one_to_one(num_clusters: int, num_classes: int):
    """All mappings that leave out nothing more than they must; -1 is no class."""
    clusters_left_out = max(num_clusters - num_classes, 0)
    return set(permutations([*range(num_classes), *[-1] * clusters_left_out], num_clusters))


def total(table: np.ndarray, mapping) -> Fraction:
    return sum(
        Fraction(int(row[c]), int(row.sum()))
        for row, c in zip(table, mapping, strict=True)
        if c >= 0 and row.sum() > 0
    )


@st.composite
def tables(draw):
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    counts = draw(st.lists(st.integers(0, 9), min_size=shape[0] * shape[1], max_size=16))
    return np.array(counts[: shape[0] * shape[1]]).reshape(shape)


@settings(deadline=None)
@given(tables())
def test_no_mapping_scores_more(table):
    mapping = match_clusters(table)
    possible = one_to_one(*table.shape)
    assert tuple(mapping) in possible
    best = max(total(table, other) for other in possible)
    assert float(total(table, mapping)) == pytest.approx(float(best), abs=1e-12)


def test_the_share_of_the_cluster_decides_and_not_the_count():
    # Counts would send cluster 0 to class 0 (60 + 0 > 40 + 9); shares are 0.6 + 0 < 0.4 + 0.9.
    assert list(match_clusters(np.array([[60, 40], [9, 1]]))) == [1, 0]


def test_more_clusters_than_classes_leave_some_that_are_never_right():
    mapping = match_clusters(np.array([[1, 9], [5, 5], [8, 2]]))
    assert list(mapping) == [1, -1, 0]
    assert alignment_accuracy(mapping, np.array([0, 1, 1, 2]), np.array([1, 0, 1, 0])) == 0.5


@pytest.mark.parametrize("num_clusters", [4, 6, 9])
def test_names_of_clusters_do_not_matter(num_clusters: int):
    rng = np.random.default_rng(num_clusters)
    labels = rng.integers(0, 6, size=500)
    related = np.where(rng.uniform(size=500) < 0.5, labels, rng.integers(0, 9, size=500))
    assignment = related % num_clusters
    names = rng.permutation(num_clusters)
    first, renamed = (
        alignment_accuracy(
            match_clusters(contingency(clusters, labels, num_clusters, 6)), clusters, labels
        )
        for clusters in (assignment, names[assignment])
    )
    assert first == renamed
    assert 0.2 < first < 1


def test_perfect_clusters_give_one():
    labels = np.random.default_rng(0).integers(0, 7, size=50)
    clusters = np.array([3, 0, 6, 1, 5, 2, 4])[labels]
    mapping = match_clusters(contingency(clusters, labels, 7, 7))
    assert alignment_accuracy(mapping, clusters, labels) == 1


def test_classes_may_have_gaps():
    labels = np.array([9, 0, 4])  # as many clusters as images: every image is its own centroid
    assert cluster_alignment(np.eye(3) * [[5], [1], [3]], labels, np.eye(3), labels) == 1
    assert cluster_alignment(np.eye(3), labels, np.eye(3), np.array([9, 0, 5])) == 2 / 3


def test_the_whole_follows_the_protocol(oracles):
    oracle = np.load(oracles / "evaluation_digits.npz")
    splits = [oracle[f"{split}_features"] for split in ("train", "val")]
    labels = [oracle[f"{split}_labels"] for split in ("train", "val")]
    for num_clusters in (None, 25):
        centroids = kmeans(splits[0], num_clusters or 10, seed=3)
        train, val = (
            np.array([np.argmin(((row - centroids) ** 2).sum(axis=1)) for row in rows])
            for rows in splits
        )
        mapping = match_clusters(contingency(train, labels[0], num_clusters or 10, 10))
        expected = np.mean([mapping[c] == label for c, label in zip(val, labels[1], strict=True)])
        arguments = splits[0], labels[0], splits[1], labels[1]
        found = cluster_alignment(*arguments, num_clusters=num_clusters, seed=3)
        assert found == expected
        scales = 2.0 ** np.random.default_rng(0).integers(-3, 4, size=(1437, 1))  # exact in floats
        assert found == cluster_alignment(
            splits[0] * scales, *arguments[1:2], splits[1] * 8, labels[1],
            num_clusters=num_clusters, seed=3,
        )  # fmt: skip
    assert 0.5 < cluster_alignment(*arguments) < 0.95


@pytest.mark.parametrize("num_clusters", [0, -1, 6])
def test_numbers_of_clusters_out_of_range(num_clusters: int):
    message = f"clusters is {num_clusters}, it must be between 1 and .* 5$"
    with pytest.raises(DistillError, match=message):
        kmeans(np.eye(5), num_clusters, seed=0)
    with pytest.raises(DistillError, match=message):
        cluster_alignment(
            np.eye(5), np.arange(5), np.eye(5), np.arange(5), num_clusters=num_clusters
        )


def test_embeddings_and_labels_that_mean_nothing():
    good, labels, broken = np.eye(5), np.arange(5), np.eye(5)
    broken[1, 2] = np.inf
    for train, val in ((broken, good), (good, broken)):
        with pytest.raises(DistillError, match="1 of 5 embeddings are not finite"):
            cluster_alignment(train, labels, val, labels)
    with pytest.raises(DistillError, match=r"training embeddings are 5 wide .* validation .* 4;"):
        cluster_alignment(good, labels, np.eye(4), labels[:4])
    with pytest.raises(DistillError, match="the training images are of 1 class"):
        cluster_alignment(good, labels * 0, good, labels)
    with pytest.raises(DistillError, match="the validation images have no labels"):
        cluster_alignment(good, labels, good, labels * 0 - 1)
    with pytest.raises(DistillError, match="5 embeddings and 4 labels of the training images"):
        cluster_alignment(good, labels[:4], good, labels)


def test_the_number_and_the_result_are_of_the_same_clusters(oracles):
    oracle = np.load(oracles / "evaluation_digits.npz")
    arguments = [oracle[f"{s}_{what}"] for s in ("train", "val") for what in ("features", "labels")]
    found = []
    for restarts in (1, 10):
        result = align_clusters(*arguments, clustering=Clustering(seed=0, restarts=restarts))
        found.append(cluster_alignment(*arguments, seed=0, restarts=restarts))
        assert result.accuracy == found[-1]
        assert result.contingency.shape == (10, 10)
        assert result.sizes.sum() == 1437
        assert result.val_sizes.sum() == 360
        assert result.train.purity >= result.train_accuracy
    assert found[0] != found[1]
    assert align_clusters(*arguments).accuracy == cluster_alignment(*arguments)
