"""Cluster alignment: tables worked by hand, the original program's numbers, `distill clusters`."""

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import DistillError
from distill.evaluation import clusters
from distill.evaluation.base import describe_metric, evaluate
from distill.evaluation.clusters import align, cluster_alignment, contingency, match_clusters
from distill.evaluation.kmeans import kmeans


def aligned(train, val=(), *, matching="purity", num_clusters: int):
    """Align (cluster, class) pairs."""
    pairs = [np.array(list(part)).T for part in (train, val or train)]
    return align(*pairs[0], *pairs[1], num_clusters=num_clusters, matching=matching)


def test_a_hand_worked_case():
    train = [(0, 4), (0, 4), (0, 9), (1, 9), (1, 9), (2, 9), (2, 7)]
    val = [(0, 4), (0, 7), (1, 9), (2, 7), (2, 5)]
    found = aligned(train, val, num_clusters=3)
    assert found.classes.tolist() == [4, 7, 9]
    assert found.contingency.tolist() == [[2, 0, 1], [0, 0, 2], [0, 1, 1]]
    assert found.mapping.tolist() == [4, 9, 7]
    assert found.accuracy == 3 / 5  # class 5 was not in training
    assert found.train_accuracy == 5 / 7
    assert found.sizes.tolist() == [3, 2, 2]
    assert found.val_sizes.tolist() == [2, 1, 2]
    assert found.matched_share.tolist() == [2 / 3, 1, 1 / 2]
    assert found.notes() == []


def test_agreement_of_clusters_and_classes():
    # Clusters {a, a, b} and {b, b}. Pairs together in both: aa, bb; in clusters 3 + 1, in classes
    # 1 + 3; of 10. Expected 4 * 4 / 10 = 1.6: (2 - 1.6) / (4 - 1.6) = 1 / 6.
    found = aligned([(0, 0), (0, 0), (0, 1), (1, 1), (1, 1)], num_clusters=3)
    assert found.ari == pytest.approx(1 / 6)
    assert found.purity == pytest.approx(4 / 5)
    entropy = -(0.4 * np.log(0.4) + 0.6 * np.log(0.6))  # of both
    joint = -(0.4 * np.log(0.4) + 0.2 * np.log(0.2) + 0.4 * np.log(0.4))
    assert found.nmi == pytest.approx((2 * entropy - joint) / entropy)


def test_more_clusters_than_classes():
    found = aligned([(0, 3), (1, 8), (1, 8), (2, 3), (2, 8), (3, 8)], num_clusters=5)
    assert found.mapping.tolist() in ([3, 8, -1, -1, -1], [3, -1, -1, 8, -1])
    assert (found.matched_share[found.mapping < 0] == 0).all()
    assert (found.matched_share[found.mapping >= 0] == 1).all()
    lost = found.val_sizes[found.mapping < 0].sum()
    first, second = found.notes()
    assert first.startswith("3 of 5 clusters stand for no class, because there are more clusters")
    assert f"the {lost} validation images in them count as wrong" in first
    assert second.startswith("1 of 5 clusters hold no training image")


def test_fewer_clusters_than_classes():
    found = aligned([(0, 3), (0, 3), (0, 5), (1, 8), (1, 5)], num_clusters=2)
    assert found.mapping.tolist() in ([3, 8], [3, 5])
    assert found.accuracy == 3 / 5
    (note,) = found.notes()
    assert note.startswith("1 of 3 classes have no cluster, because there are fewer clusters than")


def test_a_cluster_may_be_forced_to_a_class_that_it_does_not_hold():
    found = aligned([(0, 0), (1, 0), (1, 0), (2, 1), (2, 2)], num_clusters=3)
    assert (found.matched_share == 0).sum() == 1
    (note,) = found.notes()
    assert note.startswith("1 of 3 clusters stand for a class that none of their training images")


def test_an_empty_cluster_is_not_forced():
    found = aligned([(0, 0), (0, 0), (1, 1), (1, 2)], num_clusters=3)
    assert found.mapping[2] in (1, 2)
    (note,) = found.notes()
    assert note == "1 of 3 clusters hold no training image, so that their class is arbitrary"


def test_labels_that_mean_nothing():
    clusters, labels = np.array([0, 1, 1]), np.array([0, 1, 2])
    for train, val, message in (
        (labels * 0, labels, "the training images are of 1 class"),
        (labels, labels - 1, "1 of 3 labels of the validation images are missing"),
    ):
        with pytest.raises(DistillError, match=message):
            align(clusters, train, clusters, val, num_clusters=2)


def test_classes_without_training_images_are_nobodys():
    # With a column for class 1, the empty cluster could take it, and be right by luck.
    found = aligned([(0, 0), (0, 2), (1, 2)], [(2, 1), (0, 0)], num_clusters=3)
    assert found.mapping.tolist() == [0, 2, -1]
    assert found.accuracy == 1 / 2


def test_counts_may_decide():
    train = [*[(0, 0)] * 60, *[(0, 1)] * 40, *[(1, 0)] * 9, (1, 1)]
    assert aligned(train, num_clusters=2).mapping.tolist() == [1, 0]
    by_count = aligned(train, num_clusters=2, matching="count")
    assert by_count.mapping.tolist() == [0, 1]
    assert by_count.train_accuracy == 61 / 110


@pytest.mark.parametrize("suffix", ["", "_with_empty"])
def test_digits_agree_with_the_original_program(oracles, suffix: str):
    oracle = np.load(oracles / "evaluation_digits.npz")
    found = align(
        oracle[f"train_clusters{suffix}"],
        oracle["train_labels"],
        oracle[f"val_clusters{suffix}"],
        oracle["val_labels"],
        num_clusters=10,
    )
    assert found.accuracy == oracle[f"val_alignment{suffix}"]
    assert found.train_accuracy == oracle[f"train_alignment{suffix}"]
    assert (found.sizes == 0).any() == bool(suffix)
    if not suffix:
        assert found.mapping.tolist() == oracle["cluster_to_class"].tolist()


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


NAMES = ["cluster_alignment", "cluster_nmi", "cluster_ari", "cluster_purity"]


def test_the_command_prints_and_keeps_what_python_returns(measure, weights, data, capsys):
    measured = measure("clusters")
    assert list(measured) == NAMES
    assert 1 / 3 <= measured["cluster_alignment"] <= 1
    assert f"cluster_alignment  {measured['cluster_alignment']:.4f}" in capsys.readouterr().out
    network = {"student": "timm:test_resnet", "image_size": 32, "num_workers": 0}
    assert evaluate("clusters", weights, data=str(data), **network).metrics == measured


def test_names_say_what_differs_from_the_standard_protocol(measure):
    assert list(measure("clusters", "--num-clusters", "3")) == NAMES
    measured = measure("clusters", "--num-clusters", "36", "--matching", "count", "--spherical")
    assert list(measured)[len(NAMES) :] == [
        "cluster_alignment_k36_count_spherical",
        *(f"{name}_k36_spherical" for name in NAMES[1:]),
    ]
    measured = measure("clusters", "--num-clusters", "2", "--minibatch", "20")
    assert measured["cluster_alignment_k2_minibatch"] <= 2 / 3  # two clusters, two classes
    measured = measure("clusters", "--restarts", "1", "--iterations", "5")
    assert list(measured)[-len(NAMES) :] == [f"{name}_r1_i5" for name in NAMES]
    for name in measured:
        assert describe_metric(name) is not None


def test_the_flags_arrive(command, monkeypatch):
    received = []

    def record(features, num_clusters, **settings):
        received.append((num_clusters, settings))
        return kmeans(features, num_clusters, seed=0, restarts=1)

    monkeypatch.setattr(clusters, "kmeans", record)
    flags = "--seed 7 --num-clusters 5 --restarts 2 --iterations 3 --spherical --minibatch 9"
    assert command("clusters", *flags.split()) == 0
    given = {"seed": 7, "num_iterations": 3, "restarts": 2, "spherical": True, "batch_size": 9}
    assert received == [(5, given)]


def test_what_every_cluster_holds_and_what_a_reader_should_know(command, capsys):
    assert command("clusters", "--num-clusters", "4", "--per-cluster") == 0
    lines = capsys.readouterr().out.splitlines()
    top = next(i for i, line in enumerate(lines) if line.startswith("cluster  images  stands for"))
    rows = [line.split() for line in lines[top + 1 : top + 5]]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert sum(int(row[1]) for row in rows) == 36
    stands_for = [row[2] for row in rows]
    assert sorted(stands_for) == ["-", "class0", "class1", "class2"]
    assert rows[stands_for.index("-")][3] == "0.0000"
    assert lines[-1].startswith("1 of 4 clusters stand for no class, because there are more")
