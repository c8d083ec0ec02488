"""Transfer to PASCAL VOC, or to a dataset in its layout: classification and detection.

Classification (mentioned by CompRess, NeurIPS 2020; details as in Goyal et al., "Scaling and
Benchmarking Self-Supervised Visual Representation Learning", ICCV 2019): one linear classifier per
class on frozen embeddings, a support vector machine with squared hinge loss, fitted by
scikit-learn. Its cost C is chosen by three-fold cross-validation on the training images, here by
average precision (area rule); positive and negative images of a class have equal weight. Images
that show a class only in difficult objects are not used for that class. Embeddings are
L2-normalized, then standardized by the training images, and divided by sqrt(D): the norm of a row
is then about 1 for any D, so that one list of costs suits all networks.

Detection: Faster R-CNN on a copy of the network (`distill.evaluation.detector`), all layers
fine-tuned (`distill.evaluation.detection`).

Shapes: N training images, M test images, D width, C classes.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge

from distill.config import AtLeast1, Positive
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
from distill.evaluation.base import (
    Evaluation,
    EvaluationOptions,
    EvaluationResult,
    Metric,
    Seed,
    Subject,
    Table,
    open_evaluation,
    register_evaluation,
)
from distill.evaluation.detection import detect, detection_aps, fine_tune
from distill.evaluation.detector import build_detector
from distill.terminal import progress_bar

Classifier = Literal["svm", "logistic"]
COSTS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)
_DEFAULT_COST = 1.0  # of a class with too few images for cross-validation
_NUM_FOLDS = 3
_MAX_ITERATIONS = 1000
_MAX_THREADS = 4  # each fit copies all embeddings


def classify(
    train_features: np.ndarray,
    train_presence: np.ndarray,
    test_features: np.ndarray,
    *,
    classes: Sequence[str],
    classifier: Classifier = "svm",
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a classifier per class and score the test images.

    Args:
        train_features: (N, D), any scale.
        train_presence: (N, C) of `PRESENT`, `ABSENT`, `DIFFICULT`.
        test_features: (M, D), any scale.
        classes: C names, for messages.
        classifier: Squared hinge loss or logistic loss.
        seed: Of the folds, from 0 to 2^32 - 1.

    Returns:
        Scores (M, C) float64, larger for images that more likely show the class, and the chosen
        cost (C,) of every class.

    Raises:
        DistillError: Embeddings that are not finite or of different widths, or a class that all
            training images show, or none.
    """
    from sklearn.exceptions import ConvergenceWarning

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
        # Warning filters are global: entered once, around all threads.
        warnings.catch_warnings(),
        ThreadPoolExecutor(min(num_usable_cores(), _MAX_THREADS)) as pool,
        progress_bar(len(classes), description="fit", unit="class") as bar,
    ):
        # Large costs cause them; the ranking does not depend on the last digits.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for label, (of_class, cost) in enumerate(pool.map(fit, range(len(classes)))):
            scores[:, label], costs[label] = of_class, cost
            bar.update()
    return scores, costs


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
    """Choose a cost from `COSTS` by cross-validated average precision.

    Args:
        rows: (N, D) standardized.
        is_present: bool (N,), of both values.
        classifier: Squared hinge loss or logistic loss.
        seed: Of the folds.

    Returns:
        The smallest of the best; 1 where there are fewer than two positive or negative images.
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
    # Rounded, so that equal rankings compare as equal in spite of summation order.
    return COSTS[int(np.argmax(np.round(precision, 9)))]


def _fitted(rows: np.ndarray, is_present: np.ndarray, cost: float, classifier: Classifier) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    kind: Any = LinearSVC if classifier == "svm" else LogisticRegression
    # The dual solver of the hinge loss is random, the primal is not.
    options = {"dual": False} if classifier == "svm" else {}
    model = kind(C=cost, class_weight="balanced", max_iter=_MAX_ITERATIONS, **options)
    return model.fit(rows, is_present)


def _require_both_signs(presence: np.ndarray, classes: Sequence[str]) -> None:
    for label, name in enumerate(classes):
        for sign, verb in (
            (PRESENT, "no training image shows"),
            (ABSENT, "all training images show"),
        ):
            if not (presence[:, label] == sign).any():
                raise DistillError(
                    f"{verb} a {name} (images with only difficult ones do not count), so that no "
                    "classifier can be fitted; name another list with --train-split, or remove the "
                    "class from the annotations"
                )


_SUFFIX: dict[Rule, str] = {"voc07": "", "area": "_area"}
_RULES = {"": "11-point rule", "_area": "area under the curve"}
_TASK = r"voc_(?P<task>classification|detection)(?P<logistic>_logistic)?"


def _task(name: re.Match[str]) -> str:
    by = "logistic regressions" if name["logistic"] else "linear classifiers"
    return f"classification by {by}" if name["task"] == "classification" else "detection"


def _map_meaning(name: re.Match[str]) -> str:
    return (
        f"mean average precision of {_task(name)} on PASCAL VOC or a dataset in its layout, "
        f"{_RULES[name['area'] or '']}"
    )


@register_evaluation(
    "voc",
    summary="transfer a student to PASCAL VOC: classification, detection",
    examples="""\
  distill voc runs/first --data VOCdevkit
      classification: a linear support vector machine per class on the frozen student
  distill voc runs/first --data VOCdevkit --task detection
      detection: Faster R-CNN on the student, all layers fine-tuned
  distill voc runs/first --data VOCdevkit/VOC2012 --train-split train --test-split val
      other lists of images""",
)
class Voc(Evaluation["Voc.Options"]):
    """Transfer a student to PASCAL VOC, or to a dataset of your own in its layout."""

    METRICS = (
        Metric(_TASK + "_map(?P<area>_area)?", _map_meaning),
        Metric(
            _TASK + "_ap",
            lambda name: f"average precision of {_task(name)} for every class, by both rules",
        ),
        Metric(
            _TASK + "_definition",
            lambda name: f"training and test images of {_task(name)}",
            unit="text",
            larger_is_better=None,
        ),
    )

    @dataclass(frozen=True)
    class Options(EvaluationOptions):
        """Options of `distill voc`."""

        data: str | None = None
        """A VOCdevkit folder, a year's folder in it (VOC2007), or any folder in that layout."""
        task: Literal["classification", "detection"] = "classification"
        """classification: linear classifiers on the frozen student; detection: Faster R-CNN on it,
        all layers fine-tuned."""
        train_split: str = "trainval"
        """List of training images in ImageSets/Main."""
        test_split: str = "test"
        """List of test images in ImageSets/Main."""
        classifier: Classifier = "svm"
        """Classification. svm: squared hinge loss; logistic: logistic loss."""
        seed: Seed = 0
        """Of folds, new layers, order and mirroring."""
        steps: AtLeast1 = 18_000
        """Detection: steps of fine-tuning."""
        batch_size: AtLeast1 = 8
        """Detection: images per step."""
        learning_rate: Positive | None = None
        """Detection: peak learning rate; None: 0.02 x batch size / 16."""
        detector_size: Annotated[int, Ge(32)] = 600
        """Detection: shorter side in pixels that images are scaled to, unless the longer one would
        exceed 5/3 of it."""

    @classmethod
    def check(cls, options: Options) -> None:
        """Require --data: the images of the run are in another layout."""
        if options.data is None:
            raise DistillError("--data is missing: name a VOCdevkit folder, or one in its layout")

    @classmethod
    def open(cls, run_or_weights: Path, options: Options, **objects: Any) -> Subject:
        """Load the network and open both lists of images."""
        assert options.data is not None
        splits = {"train_split": options.train_split, "test_split": options.test_split}
        objects["data"] = open_voc(options.data, **splits)
        subject = open_evaluation(run_or_weights, options, **objects)
        return replace(subject, other_data=None)

    @classmethod
    def run(cls, subject: Subject, options: Options) -> EvaluationResult:
        """Measure the average precision of every class, and its mean, by both rules.

        Raises:
            DistillError: A class without positive or negative training images, or no test object.
            NonFiniteLossError: The detector's loss is not finite.
        """
        train, test = subject.embedder.data.train, subject.embedder.data.val
        assert isinstance(train, VocImages)
        assert isinstance(test, VocImages)
        name = f"voc_{options.task}"
        definition = (
            f"{len(test):,} images of {test.name}, trained on {len(train):,} of {train.name}"
        )
        if options.task == "classification":
            name += "" if options.classifier == "svm" else f"_{options.classifier}"
            per_class = _classification_aps(subject, train, test, options)
        else:
            definition += (
                f" in {options.steps:,} steps of {options.batch_size}, shorter side "
                f"{options.detector_size} px"
            )
            per_class = _detection_aps(subject, train, test, options)
        return voc_result(name, train.object_classes, per_class, definition)


def voc_result(
    name: str, classes: Sequence[str], per_class: dict[Rule, np.ndarray], definition: str
) -> EvaluationResult:
    """Return the metrics and the table of classes.

    Args:
        name: What the metrics begin with, `voc_detection` for example.
        classes: C names.
        per_class: By rule (C,), NaN for classes without a test object.
        definition: Training and test images, in words.

    Raises:
        DistillError: No class has a test object.
    """
    metrics: dict[str, Any] = {
        f"{name}_map{_SUFFIX[rule]}": mean_average_precision(per_class[rule]) for rule in RULES
    }
    by_class: dict[str, dict[str, float | None]] = {}
    rows = []
    for one, *values in zip(classes, *(per_class[rule] for rule in RULES), strict=True):
        # JSON has no NaN.
        known = [None if math.isnan(value) else float(value) for value in values]
        by_class[one] = dict(zip(RULES, known, strict=True))
        rows.append([one, *("no object" if x is None else f"{x:.4f}" for x in known)])
    metrics |= {f"{name}_ap": by_class, f"{name}_definition": definition}
    return EvaluationResult(metrics, [Table(["class", "AP, 11 points", "AP, area"], rows)])


def _classification_aps(
    subject: Subject, train: VocImages, test: VocImages, options: Voc.Options
) -> dict[Rule, np.ndarray]:
    learned, tested = subject.cache.stored("train"), subject.cache.stored("val")
    scores, _ = classify(
        learned.features[:],
        train.presence()[learned.index],
        tested.features[:],
        classes=train.object_classes,
        classifier=options.classifier,
        seed=options.seed,
    )
    return classification_aps(scores, test.presence()[tested.index])


def _detection_aps(
    subject: Subject, train: VocImages, test: VocImages, options: Voc.Options
) -> dict[Rule, np.ndarray]:
    embedder = subject.embedder
    torch.manual_seed(options.seed)  # of the new layers
    detector = build_detector(
        subject.network, len(train.object_classes), image_size=options.detector_size
    )
    inference = embedder.inference
    fine_tune(
        detector,
        train,
        embedder.train_index,
        inference,
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    return detection_aps(detect(detector, test, embedder.val_index, inference), test)
