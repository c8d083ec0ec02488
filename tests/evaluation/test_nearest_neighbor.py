import numpy as np
import pytest

from distill.errors import DistillError
from distill.evaluation.inverted_lists import InvertedLists
from distill.evaluation.nn import (
    VOTE_TEMPERATURE,
    nearest_neighbors,
    nn_accuracy,
    nn_scores,
    predict,
    require_labels,
)


def test_digits_agree_with_the_original_program(oracles):
    oracle = np.load(oracles / "evaluation_digits.npz")
    accuracy = nn_accuracy(
        oracle["train_features"],
        oracle["train_labels"],
        oracle["val_features"],
        oracle["val_labels"],
    )
    assert accuracy == oracle["nn_accuracy"]


def test_scale_does_not_matter(oracles):
    oracle = np.load(oracles / "evaluation_digits.npz")
    scales = np.random.default_rng(0).uniform(0.1, 10, size=(1437, 1))
    accuracy = nn_accuracy(
        oracle["train_features"] * scales,
        oracle["train_labels"],
        oracle["val_features"] * 7,
        oracle["val_labels"],
    )
    assert accuracy == oracle["nn_accuracy"]


def test_neighbors_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    indexed, queries = rng.normal(size=(50, 7)), rng.normal(size=(9, 7))
    neighbors, similarities = nearest_neighbors(indexed, queries, k=4)
    for i, query in enumerate(queries):
        cosine = [row @ query / np.linalg.norm(row) / np.linalg.norm(query) for row in indexed]
        expected = np.argsort(cosine)[::-1][:4]
        assert list(neighbors[i]) == list(expected)
        np.testing.assert_allclose(similarities[i], np.array(cosine)[expected], rtol=1e-5)


def test_majority_and_weighted_votes_differ_where_they_should():
    labels = np.array([[0, 1, 1], [2, 1, 0], [1, 0, 0]])
    similarities = np.array([[0.9, 0.1, 0.1], [0.5, 0.5, 0.5], [0.9, 0.89, 0.88]], dtype=np.float32)
    # Row 1 is a draw: the nearest wins.
    assert list(predict(labels, similarities, vote="majority")) == [1, 2, 0]
    assert list(predict(labels, similarities, vote="weighted")) == [0, 2, 0]


def test_weighted_votes_follow_the_formula():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, size=(40, 9))
    similarities = -np.sort(-rng.uniform(-1, 1, size=(40, 9))).astype(np.float32)
    for row, (classes, values) in enumerate(zip(labels, similarities, strict=True)):
        votes = dict.fromkeys(range(4), 0.0)
        for c, value in zip(classes, values, strict=True):
            votes[int(c)] += np.exp(float(value) / VOTE_TEMPERATURE)
        assert predict(labels, similarities, vote="weighted")[row] == max(votes, key=votes.get)


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_out_of_range(k: int):
    with pytest.raises(DistillError, match=f"k is {k}, it must be between 1 and .* 5"):
        nearest_neighbors(np.eye(5), np.eye(5), k=k)


def test_embeddings_that_are_not_finite_are_counted():
    broken = np.eye(5)
    broken[2, 2] = np.nan
    with pytest.raises(DistillError, match="1 of 5 embeddings are not finite"):
        nearest_neighbors(broken, np.eye(5), k=1)


def test_embeddings_of_different_widths():
    with pytest.raises(DistillError, match=r"training embeddings are 5 wide .* validation .* 4;"):
        nearest_neighbors(np.eye(5), np.eye(4), k=1)


def test_labels_that_mean_nothing():
    with pytest.raises(DistillError, match="have no labels"):
        require_labels(None, what="photos")
    with pytest.raises(DistillError, match="have no labels"):
        require_labels(np.array([-1, -1]), what="photos")
    with pytest.raises(DistillError, match=r"are of 1 class, .* needs 2"):
        require_labels(np.array([3, 3]), what="photos")
    require_labels(np.array([0, 1]), what="photos")


def test_one_search_serves_every_k(oracles, monkeypatch):
    oracle = np.load(oracles / "evaluation_digits.npz")
    arguments = [oracle[f"{s}_{what}"] for s in ("train", "val") for what in ("features", "labels")]
    searches = []

    def record(*arguments, k):
        searches.append(k)
        return nearest_neighbors(*arguments, k=k)

    monkeypatch.setattr("distill.evaluation.nn.nearest_neighbors", record)
    scores = nn_scores(*arguments, ks=(20, 1, 5, 5), vote="weighted")
    assert searches == [20]
    assert scores.recall is None
    assert list(scores.predicted) == [1, 5, 20]
    for k, accuracy in scores.accuracies().items():
        assert accuracy == nn_accuracy(*arguments, k=k, vote="weighted")
    assert scores.accuracy(1) == oracle["nn_accuracy"]
    assert scores.confusion(1).sum() == 360
    assert len(scores.by_class(1)) == 10


def test_an_approximate_search_says_what_it_found(oracles):
    oracle = np.load(oracles / "evaluation_digits.npz")
    arguments = [oracle[f"{s}_{what}"] for s in ("train", "val") for what in ("features", "labels")]
    few, all_lists = (
        nn_scores(*arguments, ks=(1, 10), ivf=InvertedLists(num_lists=30, num_probes=probes))
        for probes in (1, 30)
    )
    assert 0.3 < few.recall < all_lists.recall == 1
    assert all_lists.accuracies() == nn_scores(*arguments, ks=(1, 10)).accuracies()


def test_scores_that_cannot_be(oracles):
    good, labels = np.eye(5), np.arange(5)
    for ks, message in (((), "no k was given"), ((1, 6), "k is 6, it must be between 1 and .* 5")):
        with pytest.raises(DistillError, match=message):
            nn_scores(good, labels, good, labels, ks=ks)
    with pytest.raises(DistillError, match="5 embeddings and 4 labels of the training images"):
        nn_accuracy(good, labels[:4], good, labels)
    with pytest.raises(DistillError, match="the training images are of 1 class"):
        nn_scores(good, labels * 0, good, labels)
