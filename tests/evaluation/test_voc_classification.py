"""One classifier per class on frozen embeddings: what is learned, chosen and ignored."""

from functools import partial

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from distill.errors import DistillError
from distill.evaluation import voc as voc_classification
from distill.evaluation.average_precision import classification_ap
from distill.evaluation.voc import COSTS, choose_cost, classification_aps, classify, standardized

CLASSES = ("cat", "dog")


def problem(*, num=60, width=8, noise=0.3, seed=0):
    """Embeddings that lean towards direction c where class c is shown."""
    rng = np.random.default_rng(seed)
    presence = np.where(rng.random((num, 2)) < 0.4, 1, -1)
    features = rng.normal(size=(num, width)) * noise
    features[:, :2] += presence
    return features.astype(np.float32), presence


@pytest.mark.parametrize("classifier", ["svm", "logistic"])
def test_classes_are_told_apart_each_for_itself(classifier):
    train, presence = problem()
    test, shown = problem(seed=1)
    found = classify(train, presence, test, classes=CLASSES, classifier=classifier)
    assert found.scores.shape == (60, 2)
    for values in classification_aps(found.scores, shown).values():
        assert values.min() > 0.95
    swapped = classification_aps(found.scores[:, ::-1], shown)
    assert max(values.max() for values in swapped.values()) < 0.8
    again = classify(train, presence, test, classes=CLASSES, classifier=classifier)
    np.testing.assert_array_equal(found.scores, again.scores)


def test_classifiers_differ():
    train, presence = problem()
    one, other = (
        classify(train, presence, train, classes=CLASSES, classifier=name).scores
        for name in ("svm", "logistic")
    )
    assert np.abs(one - other).max() > 0.01


@pytest.mark.parametrize(
    ("classifier", "model"),
    [
        ("svm", partial(LinearSVC, dual=False)),
        ("logistic", partial(LogisticRegression, max_iter=1000)),
    ],
)
def test_both_signs_weigh_the_same(classifier, model):
    train, presence = problem(noise=1.0)
    test, _ = problem(noise=1.0, seed=1)
    presence[:40, 0] = -1  # rare now
    found = classify(train, presence, test, classes=CLASSES, classifier=classifier)
    rows, tested = standardized(train, test)
    is_present = presence[:, 0] == 1
    shares = {True: 30 / is_present.sum(), False: 30 / (~is_present).sum()}
    weights = np.array([shares[bool(one)] for one in is_present])
    fitted = model(C=found.costs[0]).fit(rows, is_present, sample_weight=weights)
    np.testing.assert_allclose(found.scores[:, 0], fitted.decision_function(tested), rtol=1e-5)


def test_difficult_images_take_no_part_in_learning():
    train, presence = problem()
    kept = np.ones(60, dtype=bool)
    kept[::4] = False
    difficult = presence.copy()
    difficult[~kept, 0] = 0
    wild = train.copy()
    found = classify(wild, difficult, train, classes=CLASSES)
    # The embeddings still set the standard, but their rows and signs do not count.
    scale = standardized(train, train)[0]
    cost = choose_cost(scale[kept], presence[kept, 0] == 1, classifier="svm", seed=0)
    expected = voc_classification._fitted(scale[kept], presence[kept, 0] == 1, cost, "svm")
    np.testing.assert_allclose(found.scores[:, 0], expected.decision_function(scale))
    assert found.costs[0] == cost
    assert (
        np.abs(
            found.scores[:, 1] - classify(wild, presence, train, classes=CLASSES).scores[:, 1]
        ).max()
        == 0
    )


def test_difficult_test_images_are_ignored():
    scores = np.array([[0.9], [0.8], [0.7]])
    presence = np.array([[0], [1], [-1]])
    assert classification_aps(scores, presence)["area"].tolist() == [1.0]
    assert classification_aps(scores, -np.abs(presence))["voc07"].tolist() == pytest.approx(
        [np.nan], nan_ok=True
    )


def test_rows_are_normalized_columns_standardized_by_the_training_images():
    rng = np.random.default_rng(0)
    train = rng.normal(2, 3, size=(50, 5)).astype(np.float32)
    train[:, 3] = 0  # constant, and zero after normalization as well
    test = rng.normal(size=(7, 5)).astype(np.float32)
    unit = train / np.linalg.norm(train, axis=1, keepdims=True)
    deviation = unit.std(axis=0)
    deviation[3] = np.inf
    found, found_test = standardized(train, test)
    np.testing.assert_allclose(found, (unit - unit.mean(0)) / deviation / 5**0.5, atol=1e-6)
    test_unit = test / np.linalg.norm(test, axis=1, keepdims=True)
    expected = (test_unit - unit.mean(0)) / deviation / 5**0.5
    np.testing.assert_allclose(found_test, expected, atol=1e-5)
    # 4 of 5 columns vary: the mean square of a row is 4/5.
    assert (found**2).sum(1).mean() == pytest.approx(4 / 5)
    scaled, _ = standardized(train * 7, test)
    np.testing.assert_allclose(scaled, found, atol=1e-6)


def test_the_cost_is_the_one_that_ranks_left_out_images_best():
    from sklearn.model_selection import StratifiedKFold

    train, presence = problem(num=40, width=20, noise=1.5, seed=3)
    rows, is_present = standardized(train, train)[0], presence[:, 0] == 1
    means = []
    for cost in COSTS:
        folds = StratifiedKFold(3, shuffle=True, random_state=5).split(rows, is_present)
        aps = []
        for learned, left in folds:
            model = LinearSVC(C=cost, class_weight="balanced", dual=False)
            model.fit(rows[learned], is_present[learned])
            scores = model.decision_function(rows[left])
            labels = np.where(is_present[left], 1, -1)
            aps.append(classification_ap(scores, labels, rule="area"))
        means.append(np.mean(aps))
    assert len(set(np.round(means, 6))) > 2  # else nothing is chosen
    found = choose_cost(rows, is_present, classifier="svm", seed=5)
    assert found == COSTS[int(np.argmax(np.round(means, 9)))]


def test_rare_classes():
    train, presence = problem(num=20)
    presence[:, 0] = -1
    presence[3, 0] = 1
    presence[:, 1] = 1
    presence[[4, 5], 1] = -1
    found = classify(train, presence, train, classes=CLASSES)
    assert found.costs[0] == 1.0  # nothing can be left out
    assert found.costs[1] in COSTS


@pytest.mark.parametrize(
    ("value", "message"),
    [(1, "all training images show a dog"), (-1, "no training image shows a dog")],
)
def test_classes_without_one_of_both_signs(value, message):
    train, presence = problem()
    presence[:, 1] = value
    presence[0, 1] = 0
    with pytest.raises(DistillError, match=message):
        classify(train, presence, train, classes=CLASSES)


def test_what_cannot_be_classified():
    train, presence = problem()
    with pytest.raises(DistillError, match="8 wide and the validation embeddings 7"):
        classify(train, presence, train[:, :7], classes=CLASSES)
    with pytest.raises(DistillError, match="the seed is -1, it must be between 0 and 4294967295"):
        classify(train, presence, train, classes=CLASSES, seed=-1)
    train[3, 3] = np.nan
    with pytest.raises(DistillError, match="1 of 60 embeddings are not finite"):
        classify(train, presence, train, classes=CLASSES)
