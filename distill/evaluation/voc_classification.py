"""Classifies images by what they show, each class for itself, from frozen embeddings.

Protocol (CompRess, NeurIPS 2020, names it; the details are those of Goyal et al., "Scaling and
Benchmarking Self-Supervised Visual Representation Learning", ICCV 2019, as far as they apply): one
linear classifier per class on embeddings that are never trained further; a support vector machine
with squared hinge loss, whose cost C is chosen by three-fold cross-validation on the training
images; here by average precision (area rule), with both signs of a class weighing the same. Images
that show a class only in difficult objects take no part in learning it.

Embeddings are L2-normalized, then standardized by the training images, and divided by
sqrt(D): a row is then about 1 long whatever D is, so that one list of costs suits all networks.
scikit-learn fits.

Shapes: N training images, M test images, D width, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from distill.data.views import num_usable_cores
from distill.errors import DistillError
from distill.evaluation.average_precision import (
    ABSENT,
    DIFFICULT,
    PRESENT,
    RULES,
    Rule,
    classification_ap,
)
from distill.evaluation.nearest_neighbour import l2_normalized, require_same_width
from distill.terminal import progress_bar

Classifier = Literal["svm", "logistic"]
COSTS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)
_DEFAULT_COST = 1.0  # of a class that is too rare to choose by
_NUM_FOLDS = 3
_MAX_ITERATIONS = 1000
_MAX_THREADS = 4  # the fitters copy all embeddings each


@dataclass(frozen=True)
class ClassScores:
    """What classifiers say of the test images.

    Attributes:
        scores: float64 (M, C), larger for images that rather show the class.
        costs: float64 (C,), the cost chosen for every class.
    """

    scores: np.ndarray
    costs: np.ndarray


def classify(
    train_features: np.ndarray,
    train_presence: np.ndarray,
    test_features: np.ndarray,
    *,
    classes: Sequence[str],
    classifier: Classifier = "svm",
    seed: int = 0,
) -> ClassScores:
    """Fit a classifier per class and score the test images.

    Args:
        train_features: (N, D), any scale.
        train_presence: (N, C) of `PRESENT`, `ABSENT`, `DIFFICULT`.
        test_features: (M, D), any scale.
        classes: C names, for messages.
        classifier: Squared hinge loss or logistic loss.
        seed: Of the folds, from 0 to 2^32 - 1.

    Raises:
        DistillError: Embeddings that are not finite or of different widths, a seed out of range, or
            a class that all training images show, or none.
    """
    if not 0 <= seed < 2**32:
        raise DistillError(f"the seed is {seed}, it must be between 0 and {2**32 - 1}")
    require_same_width(train_features, test_features)
    _require_both_signs(train_presence, classes)
    train, test = standardized(train_features, test_features)

    def fit(label: int) -> tuple[np.ndarray, float]:
        counted = train_presence[:, label] != DIFFICULT
        rows, is_present = train[counted], train_presence[counted, label] == PRESENT
        cost = choose_cost(rows, is_present, classifier=classifier, seed=seed)
        return _fitted(rows, is_present, cost, classifier).decision_function(test), cost

    scores = np.zeros((len(test), len(classes)))
    costs = np.zeros(len(classes))
    with (
        _without_convergence_warnings(),
        ThreadPoolExecutor(min(num_usable_cores(), _MAX_THREADS)) as pool,
        progress_bar(len(classes), description="fit", unit="class") as bar,
    ):
        for label, (found, cost) in enumerate(pool.map(fit, range(len(classes)))):
            scores[:, label], costs[label] = found, cost
            bar.update()
    return ClassScores(scores, costs)


def classification_aps(scores: np.ndarray, presence: np.ndarray) -> dict[Rule, np.ndarray]:
    """Return the average precision of every class by both rules.

    Args:
        scores: (M, C).
        presence: (M, C) of `PRESENT`, `ABSENT`, `DIFFICULT`.

    Returns:
        By rule (C,), NaN for classes that no image shows.
    """
    num_classes = presence.shape[1]
    return {
        rule: np.array(
            [classification_ap(scores[:, c], presence[:, c], rule=rule) for c in range(num_classes)]
        )
        for rule in RULES
    }


def standardized(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """L2-normalize rows, then centre and scale columns by the training rows, and by 1 / sqrt(D).

    Columns that are constant over the training images become zero.

    Raises:
        DistillError: A row that is not finite.
    """
    train, test = l2_normalized(train).astype(np.float64), l2_normalized(test).astype(np.float64)
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    varies = deviation > 1e-7  # below, it is the rounding of float32
    scale = varies / np.where(varies, deviation, 1.0) / np.sqrt(train.shape[1])
    return (train - mean) * scale, (test - mean) * scale


def choose_cost(
    rows: np.ndarray, is_present: np.ndarray, *, classifier: Classifier, seed: int
) -> float:
    """Return the cost among `COSTS` whose classifiers rank left-out images best.

    Args:
        rows: (N, D) standardized.
        is_present: bool (N,), of both signs.
        classifier: Squared hinge loss or logistic loss.
        seed: Of the folds.

    Returns:
        The smallest of the best; 1 where either sign has fewer than two images.
    """
    from sklearn.model_selection import StratifiedKFold

    rarer = int(min(is_present.sum(), (~is_present).sum()))
    num_folds = min(_NUM_FOLDS, rarer)
    if num_folds < 2:
        return _DEFAULT_COST
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    precision = np.zeros(len(COSTS))
    for learnt, left_out in folds.split(rows, is_present):
        truth = np.where(is_present[left_out], PRESENT, ABSENT)
        for i, cost in enumerate(COSTS):
            model = _fitted(rows[learnt], is_present[learnt], cost, classifier)
            scores = model.decision_function(rows[left_out])
            precision[i] += classification_ap(scores, truth, rule="area")
    # Rounded, so that equal rankings are equal whatever the order of summation.
    return COSTS[int(np.argmax(np.round(precision, 9)))]


def _fitted(rows: np.ndarray, is_present: np.ndarray, cost: float, classifier: Classifier) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    kind: Any = LinearSVC if classifier == "svm" else LogisticRegression
    # The dual of the hinge loss is fitted in a random order; the primal has none.
    options = {"dual": False} if classifier == "svm" else {}
    model = kind(C=cost, class_weight="balanced", max_iter=_MAX_ITERATIONS, **options)
    return model.fit(rows, is_present)


@contextmanager
def _without_convergence_warnings() -> Iterator[None]:
    """Silence what large costs cause, whose last digits no ranking needs.

    Filters are the process's, so that this is entered once, around all threads.
    """
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _require_both_signs(presence: np.ndarray, classes: Sequence[str]) -> None:
    for label, name in enumerate(classes):
        for sign, verb in (
            (PRESENT, "no training image shows"),
            (ABSENT, "all training images show"),
        ):
            if not (presence[:, label] == sign).any():
                raise DistillError(
                    f"{verb} a {name} (images with nothing but difficult ones do not count), so "
                    "that there is nothing to tell apart; name another list with --train-split, or "
                    "take the class out of the annotations"
                )
