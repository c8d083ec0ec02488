"""Heads on clean embeddings: hand-made planes, restriction, mistakes."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from distill.errors import DistillError
from distill.evaluation.frozen_classifier import fit_head

TRAIN = np.array([[9, 0.1], [2, -0.1], [0.1, 5], [-0.1, 1], [-3, 0.2], [-1, -0.1]], np.float32)
LABELS = np.array([4, 4, 7, 7, 9, 9])
EAST, NORTH, WEST = [1, 0.3], [0.3, 1], [-1, 0.3]
QUERIES = np.array([EAST, NORTH, WEST], np.float32)


@pytest.mark.parametrize("name", ["nn", "linear"])
def test_directions_are_classes_and_length_says_nothing(name):
    head = fit_head(name, TRAIN, LABELS)
    assert head.predict(QUERIES).tolist() == [4, 7, 9]
    assert head.predict(1e4 * QUERIES).tolist() == [4, 7, 9]


@pytest.mark.parametrize("name", ["nn", "linear"])
def test_a_restricted_prediction_takes_the_best_of_what_is_left(name):
    head = fit_head(name, TRAIN, LABELS)
    assert head.predict(QUERIES, among=np.array([4, 9])).tolist() == [4, 4, 9]
    assert head.predict(QUERIES, among=np.array([7])).tolist() == [7, 7, 7]
    assert head.predict(QUERIES, among=np.array([7, 123])).tolist() == [7, 7, 7]


@pytest.mark.parametrize("name", ["nn", "linear"])
def test_two_classes(name):
    head = fit_head(name, TRAIN[:4], LABELS[:4])
    assert head.predict(QUERIES[:2]).tolist() == [4, 7]
    assert head.predict(QUERIES[:2], among=np.array([4])).tolist() == [4, 4]


def test_the_linear_head_normalizes_then_standardizes():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 5
    train = rng.normal(size=(200, 8)) + 2 * np.eye(8)[labels] + 10
    train[:, 3] *= 50  # one dimension dominates, unless standardized
    train *= rng.uniform(0.1, 10, size=(200, 1))  # lengths that say nothing
    queries = train[::3] + rng.normal(size=(67, 8))
    unit = train / np.linalg.norm(train, axis=1, keepdims=True)
    unit_queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    mean, std = unit.mean(0), np.sqrt(unit.var(0, ddof=1) + 1e-5)
    model = LogisticRegression(max_iter=1000).fit((unit - mean) / std, labels)
    expected = model.predict((unit_queries - mean) / std)
    found = fit_head("linear", train.astype(np.float32), labels).predict(queries)
    assert (found == expected).mean() > 0.98  # float32 against float64


def test_a_dimension_that_never_changes_divides_by_nothing():
    train = np.hstack([TRAIN / np.linalg.norm(TRAIN, axis=1, keepdims=True), np.zeros((6, 1))])
    queries = np.hstack([QUERIES, np.zeros((3, 1))])
    assert fit_head("linear", train, LABELS).predict(queries).tolist() == [4, 7, 9]


def test_a_dimension_that_hardly_ever_changed_does_not_decide():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    train = rng.normal(size=(400, 6)) + 4 * np.eye(6)[labels]
    train = np.hstack([train, np.zeros((400, 1))])
    train[7, 6] = 1e-6  # one row of one class
    queries = train.copy()
    queries[:, 6] = 0.2  # under a shift
    head = fit_head("linear", train.astype(np.float32), labels)
    assert (head.predict(queries.astype(np.float32)) == labels).mean() > 0.95


@pytest.mark.parametrize("name", ["nn", "linear"])
def test_mistakes_are_sentences(name):
    with pytest.raises(DistillError, match="no labels"):
        fit_head(name, TRAIN, np.full(6, -1))
    with pytest.raises(DistillError, match="of 1 class"):
        fit_head(name, TRAIN, np.zeros(6, np.int64))
    with pytest.raises(DistillError, match="not finite"):
        fit_head(name, np.full_like(TRAIN, np.nan), LABELS)
    head = fit_head(name, TRAIN, LABELS)
    with pytest.raises(DistillError, match="2 wide"):
        head.predict(np.ones((1, 3), np.float32))
    with pytest.raises(DistillError, match="not finite"):
        head.predict(np.full_like(QUERIES, np.inf))
    with pytest.raises(DistillError, match="no training image is of the classes"):
        head.predict(QUERIES, among=np.array([1]))
