"""The result of an alignment, on tables worked by hand."""

import numpy as np
import pytest

from distill.errors import DistillError
from distill.evaluation.clusters import align, align_clusters


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
    assert found.purity.tolist() == [2 / 3, 1, 1 / 2]
    assert found.commonest.tolist() == [4, 9, 7]
    assert found.matched_share.tolist() == [2 / 3, 1, 1 / 2]
    assert found.train.purity == 5 / 7
    assert found.val.purity == 3 / 5
    assert found.notes() == []
    assert found.metrics() == {
        "cluster_alignment": 3 / 5,
        "cluster_nmi": found.val.nmi,
        "cluster_ari": found.val.ari,
        "cluster_purity": 3 / 5,
    }
    assert found.train.nmi != found.val.nmi


def test_more_clusters_than_classes():
    found = aligned([(0, 3), (1, 8), (1, 8), (2, 3), (2, 8), (3, 8)], num_clusters=5)
    assert found.mapping.tolist() in ([3, 8, -1, -1, -1], [3, -1, -1, 8, -1])
    assert found.unmatched_clusters.tolist() == np.flatnonzero(found.mapping < 0).tolist()
    assert found.empty_clusters.tolist() == [4]
    assert found.purity.tolist() == [1, 1, 0.5, 1, 0]
    assert found.commonest[[0, 1, 3, 4]].tolist() == [3, 8, 8, -1]
    assert (found.matched_share[found.mapping < 0] == 0).all()
    assert (found.matched_share[found.mapping >= 0] == 1).all()
    assert len(found.unmatched_classes) == 0
    lost = found.val_sizes[found.mapping < 0].sum()
    first, second = found.notes()
    assert first.startswith("3 of 5 clusters stand for no class, because there are more clusters")
    assert f"the {lost} validation images in them count as wrong" in first
    assert second.startswith("1 of 5 clusters hold no training image")


def test_fewer_clusters_than_classes():
    found = aligned([(0, 3), (0, 3), (0, 5), (1, 8), (1, 5)], num_clusters=2)
    assert found.mapping.tolist() in ([3, 8], [3, 5])
    assert len(found.unmatched_clusters) == 0
    assert found.unmatched_classes.tolist() == sorted({5, 8} - set(found.mapping))
    assert found.accuracy == 3 / 5
    (note,) = found.notes()
    assert note.startswith("1 of 3 classes have no cluster, because there are fewer clusters than")


def test_a_cluster_may_be_forced_to_a_class_that_it_does_not_hold():
    found = aligned([(0, 0), (1, 0), (1, 0), (1, 1), (2, 0)], num_clusters=3)
    assert sorted(found.mapping.tolist()) == [-1, 0, 1]
    assert found.forced_clusters.tolist() == []
    found = aligned([(0, 0), (1, 0), (1, 0), (2, 1), (2, 2)], num_clusters=3)
    assert len(found.forced_clusters) == 1
    assert found.forced_clusters[0] in (0, 1)
    assert found.matched_share[found.forced_clusters] == 0
    (note,) = found.notes()
    assert note.startswith("1 of 3 clusters stand for a class that none of their training images")


def test_an_empty_cluster_is_not_forced():
    found = aligned([(0, 0), (0, 0), (1, 1), (1, 2)], num_clusters=3)
    assert found.empty_clusters.tolist() == [2]
    assert found.mapping[2] in (1, 2)
    assert len(found.forced_clusters) == 0
    (note,) = found.notes()
    assert (
        note == "1 of 3 clusters hold no training image, so that no image says what they stand for"
    )


def test_the_validation_images_that_are_lost_are_counted():
    train, val = [(0, 0), (1, 1), (2, 1), (2, 0)], [(2, 0), (2, 1), (2, 1), (0, 0)]
    found = aligned(train, val, num_clusters=3)
    assert found.mapping.tolist() == [0, 1, -1]
    assert "the 3 validation images in them count as wrong" in found.notes()[0]
    assert found.accuracy == 1 / 4


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
    directions, labels = np.eye(2)[np.array(train)[:, 0]], np.array(train)[:, 1]
    for matching, accuracy in (("purity", 49 / 110), ("count", 61 / 110)):
        found = align_clusters(directions, labels, directions, labels, matching=matching)
        assert found.accuracy == accuracy


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
    assert len(found.empty_clusters) == bool(suffix)
    if not suffix:
        assert found.mapping.tolist() == oracle["cluster_to_class"].tolist()
