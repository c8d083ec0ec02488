"""Nearest-neighbor accuracy: a vote of the nearest training images gives the class.

Protocol (CompRess, NeurIPS 2020): L2-normalized embeddings, k = 1, exact search over the training
set. For larger k the neighbors vote, with equal weights or weighted by exp(similarity / 0.07)
(Wu et al., CVPR 2018). Search is FAISS's exact inner product, on the GPU when FAISS sees one.

Shapes: N training images, M validation images, D width, k neighbors, C classes.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from distill import distributed
from distill.config import AtLeast1, TeacherOptions
from distill.embeddings.search import (
    Rows,
    nearest_neighbors,
    require_ks,
    require_splits,
)
from distill.errors import DistillError
from distill.evaluation.agreement import neighbor_agreement
from distill.evaluation.base import (
    Evaluation,
    EvaluationResult,
    Metric,
    ReferenceTeacherOptions,
    Seed,
    Subject,
    Table,
    reference_teacher,
    register_evaluation,
    teacher_cache,
)
from distill.files import atomic_write, require_file_place

Vote = Literal["majority", "weighted"]
VOTE_TEMPERATURE = 0.07
_MAX_SHOWN_CLASSES = 20  # of a confusion matrix


def nn_accuracy(
    train_features: Rows,
    train_labels: np.ndarray,
    val_features: Rows,
    val_labels: np.ndarray,
    *,
    k: int = 1,
    vote: Vote = "majority",
) -> float:
    """Return the share of validation images whose class the k nearest training images give.

    Args:
        train_features: (N, D), any scale; an array or a memory map.
        train_labels: (N,) classes, at least 0.
        val_features: (M, D), any scale.
        val_labels: (M,) classes, at least 0.
        k: Neighbors that vote, from 1 to N.
        vote: Equal weights, or weights by similarity.

    Raises:
        DistillError: Labels that are missing, of one class or not one per embedding; k outside
            1..N; embeddings that are not finite or of different widths.

    Example:
        >>> import numpy as np
        >>> train, val = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[2.0, 0.5], [0.1, 3.0]])
        >>> nn_accuracy(train, np.array([0, 1]), val, np.array([0, 0]))
        0.5
    """
    require_splits(train_features, train_labels, val_features, val_labels)
    predicted = nn_predictions(train_features, train_labels, val_features, ks=(k,), vote=vote)
    return float(np.mean(predicted[k] == val_labels))


def nn_predictions(
    train_features: Rows,
    train_labels: np.ndarray,
    val_features: Rows,
    *,
    ks: Sequence[int] = (1,),
    vote: Vote = "majority",
) -> dict[int, np.ndarray]:
    """Predict the class of every validation image for several k, from one search for the largest.

    Args:
        train_features: (N, D), any scale; read in blocks.
        train_labels: (N,) classes, at least 0.
        val_features: (M, D), any scale; read in blocks.
        ks: Numbers of neighbors that vote, each from 1 to N.
        vote: Equal weights, or weights by similarity.

    Returns:
        Predicted classes (M,) by k, in the order of k.

    Raises:
        DistillError: No k or one outside 1..N; embeddings that are not finite or of different
            widths.

    Example:
        >>> import numpy as np
        >>> train = np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
        >>> nn_predictions(train, np.array([0, 1, 1]), np.array([[2.0, 1.0]]), ks=(1, 3))
        {1: array([0]), 3: array([1])}
    """
    require_ks(ks, most=len(train_features))
    neighbors, similarities = nearest_neighbors(train_features, val_features, k=max(ks))
    voters = train_labels[neighbors]
    return {k: winners(voters[:, :k], similarities[:, :k], vote=vote) for k in sorted(set(ks))}


def winners(neighbor_labels: np.ndarray, similarities: np.ndarray, *, vote: Vote) -> np.ndarray:
    """Return the class (M,) that every row votes for; a tie goes to the nearer class.

    Args:
        neighbor_labels: (M, k) classes, nearest first.
        similarities: (M, k) cosine similarities.
        vote: Equal weights, or weights by similarity.
    """
    weights = np.ones_like(similarities, dtype=np.float64)
    if vote == "weighted":
        nearest = similarities[:, :1].astype(np.float64)  # subtracted, so that exp cannot overflow
        weights = np.exp((similarities - nearest) / VOTE_TEMPERATURE)
    votes = np.zeros_like(weights)
    for j in range(neighbor_labels.shape[1]):  # M x k at a time; M x k x k would not fit
        votes += weights[:, j : j + 1] * (neighbor_labels == neighbor_labels[:, j : j + 1])
    # Rounded, since the order of summation makes equal votes differ in the last digit.
    winner = np.argmax(np.round(votes, 9), axis=1)
    return neighbor_labels[np.arange(len(winner)), winner]


def confusion(labels: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the confusion matrix.

    Args:
        labels: (M,) true classes.
        predicted: (M,) predicted ones.

    Returns:
        The classes (C,) that occur in either, sorted, and counts (C, C) int64 in that order: rows
        are the true classes, columns the predicted ones.
    """
    from sklearn.metrics import confusion_matrix

    classes = np.union1d(labels, predicted)
    return classes, confusion_matrix(labels, predicted, labels=classes)


def _accuracy_meaning(name: re.Match[str]) -> str:
    votes = "the nearest training image"
    if name["k"]:
        weighted = "weighted " if name["weighted"] else ""
        votes = f"a {weighted}vote of the {name['k']} nearest training images"
    lists = ", searched through inverted lists (an earlier version)" if name["ivf"] else ""
    return f"share of the validation images that get their own class from {votes} by cosine{lists}"


@register_evaluation(
    "nn",
    summary="measure a student's nearest-neighbor accuracy",
    examples="""\
  distill nn runs/first --data photos
      the number that training printed, from the run's student
  distill nn runs/first --data photos --k 1 5 20 --vote weighted
      several numbers of neighbors, weighted by similarity
  distill nn runs/first --data photos --per-class --confusion confusion.csv
      accuracy by class, and the confusion matrix
  distill nn runs/first --data photos --k 1 5 20 --agreement
      and the share of the teacher's neighbors that the student keeps
  distill nn alexnet.pth --student alexnet --data photos
      weights from another source""",
)
class NearestNeighbor(Evaluation["NearestNeighbor.Options"]):
    """Measure a student's nearest-neighbor accuracy."""

    is_shared = True
    METRICS = (
        Metric(
            r"nn_accuracy(_k(?P<k>\d+))?(?P<weighted>_weighted)?(?P<ivf>_ivf)?", _accuracy_meaning
        ),
        Metric(
            "nn_recall_ivf",
            "share of the nearest neighbors that inverted lists found (an earlier version)",
        ),
        Metric(
            r"neighbou?r_agreement_k(?P<k>\d+)",
            lambda name: (
                f"share of the teacher's {name['k']} nearest images that are the student's, too"
            ),
        ),
    )

    @dataclass(frozen=True)
    class Options(ReferenceTeacherOptions):
        """Options of `distill nn`."""

        k: tuple[AtLeast1, ...] = (1,)
        """Neighbors that vote; several values share one search."""
        vote: Vote = "majority"
        """Equal weights, or weights exp(similarity / 0.07)."""
        agreement: bool = False
        """Also measure which share of the teacher's k nearest images the student has, too; needs no
        labels."""
        agreement_images: AtLeast1 = 10_000
        """Largest number of images whose neighbors are compared; drawn by the seed."""
        seed: Seed = 0
        """Draws the images of the agreement."""
        per_class: bool = False
        """Print the accuracy and the commonest confusion of every class, at the first --k."""
        confusion: Path | None = None
        """CSV file for the counts of true (rows) and predicted classes (columns) at the first --k;
        up to 20 classes are printed, too."""

    @classmethod
    def check(cls, options: Options) -> None:
        """Refuse a file that cannot be written."""
        if options.confusion is not None:
            require_file_place(options.confusion, flag="--confusion", example="confusion.csv")

    @classmethod
    def run(cls, subject: Subject, options: Options) -> EvaluationResult:
        """Measure accuracies, where there are labels, and the agreement, where requested."""
        require_ks(options.k, most=len(subject.embedder.train_index))  # before they are embedded
        teacher = reference_teacher(subject.path, options)
        if options.agreement and teacher is None:
            raise DistillError(
                f"--agreement needs a teacher, and {subject.path} names none; add --teacher"
            )
        result = EvaluationResult({})
        if not options.agreement or subject.embedder.unavailable_reason() is None:
            _measure_accuracy(subject, options, result)
        if options.agreement:
            assert teacher is not None
            _measure_agreement(subject, teacher, options, result)
        return result


def _measure_accuracy(
    subject: Subject, options: NearestNeighbor.Options, result: EvaluationResult
) -> None:
    train, val = subject.embeddings()
    require_splits(train.features, train.labels, val.features, val.labels)
    predicted = nn_predictions(
        train.features, train.labels, val.features, ks=options.k, vote=options.vote
    )
    for k, classes in predicted.items():
        weighted = "_weighted" if options.vote == "weighted" else ""
        name = "nn_accuracy" if k == 1 else f"nn_accuracy_k{k}{weighted}"
        result.metrics[name] = float(np.mean(classes == val.labels))
    names = subject.embedder.data.train.classes or ()
    classes, counts = confusion(val.labels, predicted[options.k[0]])
    shown = [names[label] for label in classes]
    if options.per_class:
        result.tables.append(_class_table(shown, counts, k=options.k[0]))
    if options.confusion is not None:
        cells = [[str(count) for count in row] for row in counts]
        content = io.StringIO(newline="")
        table = csv.writer(content)
        table.writerow(["true class", *shown])
        table.writerows([name, *row] for name, row in zip(shown, cells, strict=True))
        atomic_write(options.confusion, content.getvalue().encode())
        if len(shown) <= _MAX_SHOWN_CLASSES:
            numbers = [str(number) for number in range(len(shown))]
            rows = [[f"{i} {name}", *cells[i]] for i, name in enumerate(shown)]
            result.tables.append(Table(["true, then predicted", *numbers], rows))


def _class_table(names: Sequence[str], counts: np.ndarray, *, k: int) -> Table:
    """Return a row for every class with validation images."""
    rows = []
    for row, (name, taken) in enumerate(zip(names, counts, strict=True)):
        if not (total := taken.sum()):
            continue
        wrong = np.where(np.arange(len(taken)) == row, 0, taken)
        most = int(wrong.argmax())
        taken_for = f"{names[most]} ({wrong[most] / total:.4f})" if wrong[most] else ""
        rows.append([name, str(total), f"{taken[row] / total:.4f}", taken_for])
    return Table(["class", "images", f"k = {k}", "most often confused with"], rows)


def _measure_agreement(
    subject: Subject,
    teacher: TeacherOptions,
    options: NearestNeighbor.Options,
    result: EvaluationResult,
) -> None:
    """Compare neighbors among the validation images, else among the training images."""
    embedder = subject.embedder
    split: Literal["train", "val"] = "val" if embedder.data.val is not None else "train"
    images, _ = embedder.split(split)
    caches = teacher_cache(teacher, embedder), subject.cache
    readable = [cache.stored(split).index for cache in caches]
    distributed.release_others()  # what follows is for one process
    both = np.intersect1d(readable[0], readable[1])
    of_teacher, of_student = (cache.stored(split, both).features for cache in caches)
    agreement = neighbor_agreement(
        of_teacher,
        of_student,
        ks=options.k,
        num_sampled=options.agreement_images,
        seed=options.seed,
    )
    result.metrics.update({f"neighbor_agreement_k{k}": one for k, one in agreement.items()})
    rows = [[str(k), f"{one:.4f}", f"{k / (len(both) - 1):.4f}"] for k, one in agreement.items()]
    num_compared = min(options.agreement_images, len(both))
    title = (
        f"share of the teacher's k nearest images that are the student's: {num_compared:,} of "
        f"{len(both):,} images of {images.name}, among each other"
    )
    result.tables.append(Table(["k", "agreement", "by chance"], rows, title))
