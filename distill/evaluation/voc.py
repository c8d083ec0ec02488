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

Transfers a trained student to PASCAL VOC, or to a dataset in its layout.

Classification leaves the student as it is; detection fine-tunes a copy of it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from distill.data.voc import VocImages, open_voc
from distill.data.workers import num_usable_cores
from distill.embeddings.search import l2_normalized, require_same_width
from distill.errors import DistillError
from distill.evaluation.average_precision import (
    ABSENT,
    DIFFICULT,
    PRESENT,
    RULES,
    Rule,
    classification_ap,
    mean_average_precision,
)
from distill.evaluation.base import EvaluationOptions, EvaluationResult, Subject, open_evaluation
from distill.evaluation.detection import (
    DetectionPass,
    FineTuning,
    build_detector,
    detect,
    detection_aps,
    fine_tune,
)
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
    """L2-normalize rows, then center and scale columns by the training rows, and by 1 / sqrt(D).

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
    for learned, left_out in folds.split(rows, is_present):
        truth = np.where(is_present[left_out], PRESENT, ABSENT)
        for i, cost in enumerate(COSTS):
            model = _fitted(rows[learned], is_present[learned], cost, classifier)
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


Task = Literal["classification", "detection"]


@dataclass(frozen=True)
class VocOptions(EvaluationOptions):
    """How `distill voc` measures."""

    data: str | None = None
    """A VOCdevkit folder, a year's folder in it (VOC2007), or any folder in that layout."""
    task: Task = "classification"
    """classification: linear classifiers on the frozen student; detection: Faster R-CNN on it, all
    layers fine-tuned."""
    train_split: str = "trainval"
    """List in ImageSets/Main that is learned from."""
    test_split: str = "test"
    """List in ImageSets/Main that is measured on."""
    classifier: Classifier = "svm"
    """Classification. svm: squared hinge loss; logistic: logistic loss."""
    seed: int = 0
    """Of folds, new layers, order and mirroring."""
    steps: int = 18_000
    """Detection: steps of fine-tuning."""
    batch_size: int = 8
    """Detection: images a step."""
    learning_rate: float | None = None
    """Detection: peak; None: 0.02 x batch size / 16."""
    detector_size: int = 600
    """Detection: shorter side in pixels that images are scaled to, unless the longer one would
    exceed 5/3 of it."""


@dataclass(frozen=True)
class VocMeasurement:
    """Average precisions of one task.

    Attributes:
        name: What the metrics begin with, `voc_detection` for example.
        classes: C names.
        per_class: By rule (C,), NaN for classes without a test object.
        definition: What the numbers are of, in words.
    """

    name: str
    classes: tuple[str, ...]
    per_class: dict[Rule, np.ndarray]
    definition: str

    def means(self) -> dict[str, float]:
        """Return the mean average precision by both rules, under its names in metrics.json.

        Raises:
            DistillError: No class has a test object.
        """
        return {
            f"{self.name}_map{_SUFFIX[rule]}": mean_average_precision(self.per_class[rule])
            for rule in RULES
        }

    def metrics(self) -> dict[str, Any]:
        """Return what metrics.json receives.

        Means, by class both rules (None: no object), and what they are of.
        """
        by_class = {
            name: {rule: _or_none(self.per_class[rule][i]) for rule in RULES}
            for i, name in enumerate(self.classes)
        }
        described = {f"{self.name}_ap": by_class, f"{self.name}_definition": self.definition}
        return {**self.means(), **described}


_SUFFIX: dict[Rule, str] = {"voc07": "", "area": "_area"}


def measure_voc(run_or_weights: Path, options: VocOptions) -> VocMeasurement:
    """Transfer a trained student, and add what was measured to metrics.json.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with
            `options.student`.
        options: How to measure.

    Returns:
        The average precisions; metrics start with `voc_classification`,
        `voc_classification_logistic` or `voc_detection`.

    Raises:
        DistillError: No such run, weights that do not fit, data that is not in VOC layout or
            damaged, an option out of range, classes that cannot be learned.
        NonFiniteLossError: The detector's loss is not finite.
    """
    _check(options)
    open_data = partial(open_voc, train_split=options.train_split, test_split=options.test_split)
    evaluation = open_evaluation(run_or_weights, options, open_data=open_data)
    train, test = evaluation.evaluator.data.train, evaluation.evaluator.data.val
    assert isinstance(train, VocImages)
    assert isinstance(test, VocImages)
    if options.task == "detection":
        per_class, name = _detection(evaluation, train, test, options), "voc_detection"
    else:
        per_class, name = _classification(evaluation, train, test, options), "voc_classification"
        name += "" if options.classifier == "svm" else f"_{options.classifier}"
    definition = _definition(train, test, options)
    measurement = VocMeasurement(name, train.object_classes, per_class, definition)
    evaluation.keep(EvaluationResult(measurement.metrics()))
    return measurement


def _definition(train: VocImages, test: VocImages, options: VocOptions) -> str:
    text = f"{len(test):,} images of {test.name}, learned from {len(train):,} of {train.name}"
    if options.task == "classification":
        return text
    return (
        f"{text} in {options.steps:,} steps of {options.batch_size}, shorter side "
        f"{options.detector_size} px"
    )


def _classification(
    evaluation: Subject, train: VocImages, test: VocImages, options: VocOptions
) -> dict[Rule, np.ndarray]:
    learned, tested = evaluation.cache.stored("train"), evaluation.cache.stored("val")
    found = classify(
        learned.features[:],
        train.presence()[learned.index],
        tested.features[:],
        classes=train.object_classes,
        classifier=options.classifier,
        seed=options.seed,
    )
    return classification_aps(found.scores, test.presence()[tested.index])


def _detection(
    evaluation: Subject, train: VocImages, test: VocImages, options: VocOptions
) -> dict[Rule, np.ndarray]:
    evaluator = evaluation.evaluator
    torch.manual_seed(options.seed)  # of the new layers
    detector = build_detector(
        evaluation.network, len(train.object_classes), image_size=options.detector_size
    )
    how = evaluator.inference_config(train)
    passing = DetectionPass(evaluator.device, how.num_workers, how.on_bad_images)
    tuning = FineTuning(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    fine_tune(detector, train, evaluator.train_index, tuning, passing)
    return detection_aps(detect(detector, test, evaluator.val_index, passing), test)


def _check(options: VocOptions) -> None:
    """Refuse what cannot work before anything is loaded."""
    if options.data is None:
        raise DistillError("--data is missing: name a VOCdevkit folder, or one in its layout")
    for flag, value, least in (
        ("--steps", options.steps, 1),
        ("--batch-size", options.batch_size, 1),
        ("--detector-size", options.detector_size, 32),
        ("--seed", options.seed, 0),
    ):
        if value < least:
            raise DistillError(f"{flag} is {value}, it must be at least {least}")
    rate = options.learning_rate
    if rate is not None and not 0 < rate < math.inf:
        raise DistillError(f"--learning-rate is {rate}, it must be positive and finite")


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else float(value)
