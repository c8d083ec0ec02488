"""Errors under distribution shift: corrupted images, and images of other datasets.

Corruptions: `distill.evaluation.corruption`; their errors are kept in robustness.json and not
measured again. Other datasets and video frames: `distill.evaluation.shifts`. Classes are predicted
by a head that is fitted on clean training images (`distill.evaluation.frozen_classifier`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from distill.config import AtLeast0, AtLeast1
from distill.data.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    prepare,
    require_corruptions,
    require_image_size,
)
from distill.embeddings.cache import NetworkCache
from distill.errors import DistillError
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
from distill.evaluation.corruption import (
    CorruptionResult,
    corruption_errors,
    corruption_means,
    mean_error,
)
from distill.evaluation.frozen_classifier import FrozenClassifier, HeadName
from distill.evaluation.shifts import Shift, measure_shifts, open_shifts

NONE = "none"
_ON_THE_FLY = "corrupted on the fly: near, but not the same as, the published ImageNet-C JPEG files"


def _shift_meaning(name: re.Match[str]) -> str:
    among = ", predicted among the classes of the set" if name["restricted"] else ""
    if name["clean"]:
        return f"accuracy on the validation images of the classes of {name['set']}{among}"
    return f"accuracy on the images of {name['set']}{among}"


def _frames_meaning(name: re.Match[str]) -> str:
    among = ", predicted among the classes of the set" if name["restricted"] else ""
    neighbors = f" with all their neighbors within {name['k']} frames" if name["k"] else ""
    return f"share of the anchor frames of {name['set']} that are right{neighbors}{among}"


@register_evaluation(
    "robustness",
    summary="measure a student on corrupted images and on other datasets",
    examples="""\
  distill robustness runs/first --data photos --num-images 1000
      ImageNet-C's fifteen corruptions at five severities, of 1,000 validation images
  distill robustness runs/first --data photos --corruptions fog snow --severities 3
      two of them
  distill robustness runs/first --data photos --head linear --no-teacher
      with a logistic regression instead of nearest neighbors, of the student alone
  distill robustness runs/first --data imagenet --corruptions none --shifted imagenet-a imagenet-r
      other datasets only
  distill robustness runs/first --data imagenet --corruptions none --frames vid/frames.csv
      video frames, each counted as right only with its neighboring frames""",
)
class Robustness(Evaluation["Robustness.Options"]):
    """Measure a student, and its teacher, under distribution shift."""

    tables_show_metrics = True
    METRICS = (
        Metric(
            "robustness_clean_error",
            "error on validation images as they are",
            larger_is_better=False,
        ),
        Metric(
            "robustness_mean_error",
            "error under ImageNet-C's corruptions, computed on the fly",
            larger_is_better=False,
        ),
        Metric(
            "robustness_gap",
            "error under corruption minus error on the images as they are",
            larger_is_better=False,
        ),
        Metric(
            "robustness_mce",
            "mean corruption error, relative to AlexNet's",
            unit="ratio",
            larger_is_better=False,
        ),
        Metric(
            "robustness_definition",
            "images, corruptions and head that the errors belong to",
            unit="text",
            larger_is_better=None,
        ),
        Metric(
            r"robustness_(?P<set>.+)_accuracy(?P<clean>_clean)?(?P<restricted>_restricted)?",
            _shift_meaning,
        ),
        Metric(
            r"robustness_(?P<set>.+)_(anchor|pm(?P<k>\d+))(?P<restricted>_restricted)?",
            _frames_meaning,
        ),
    )

    @dataclass(frozen=True)
    class Options(ReferenceTeacherOptions):
        """Options of `distill robustness`."""

        corruptions: tuple[str, ...] = ()
        """Corruptions of ImageNet-C; default: all fifteen; `none`: none of them."""
        severities: tuple[Annotated[int, Ge(1), Le(5)], ...] = ()
        """From 1 to 5; default: all five."""
        head: HeadName = "nn"
        """Classifier on the embeddings, fitted on clean training images: nearest neighbor or
        logistic regression."""
        num_images: AtLeast1 | None = None
        """Validation images to corrupt, drawn by the seed; None: all."""
        seed: Seed = 0
        """Draws the images and the corruptions."""
        no_teacher: bool = False
        """Leave the run's teacher out."""
        shifted: tuple[Path, ...] = ()
        """Folders of class folders of other images: ImageNet-A, -R, -v2, ObjectNet."""
        class_map: Path | None = None
        """JSON or CSV file that maps the class names of --shifted and --frames to training classes;
        None: they are training classes."""
        frames: Path | None = None
        """CSV file of neighboring video frames: anchor,frame,label and optionally offset."""
        frames_k: AtLeast0 = 10
        """An anchor is right at pm-k if all its neighbors within k frames are."""

        @property
        def wanted_corruptions(self) -> tuple[str, ...]:
            """Names of the corruptions to measure; may be empty."""
            return () if self.corruptions == (NONE,) else self.corruptions or CORRUPTIONS

        @property
        def wanted_severities(self) -> tuple[int, ...]:
            """Severities to measure."""
            return self.severities or SEVERITIES

    @classmethod
    def check(cls, options: Options) -> None:
        """Refuse unknown corruptions, a missing package, and nothing to measure."""
        others = bool(options.shifted) or options.frames is not None
        if options.wanted_corruptions:
            require_corruptions(options.wanted_corruptions, options.wanted_severities)
            prepare([])
        elif not others:
            raise DistillError(
                "--corruptions none leaves nothing to measure; add --shifted or --frames, or name "
                "corruptions"
            )
        if options.class_map is not None and not others:
            raise DistillError(
                "--class-map goes with --shifted or --frames; leave it out or add one"
            )
        given = (options.teacher, options.teacher_weights, options.teacher_image_size)
        if options.no_teacher and any(one is not None for one in given):
            raise DistillError(
                "--no-teacher contradicts the other --teacher options; leave out one or the other"
            )

    @classmethod
    def run(cls, subject: Subject, options: Options) -> EvaluationResult:
        """Measure the student, then its teacher, except for errors in robustness.json."""
        subject.require_labels()
        corruptions = options.wanted_corruptions
        index = sample_images(subject.embedder.val_index, options.num_images, seed=options.seed)
        teacher = _teacher(subject, options)
        caches = [subject.cache] if teacher is None else [subject.cache, teacher]
        shifts = open_shifts(
            subject.embedder.data.train, options.shifted, options.frames, options.class_map
        )
        for cache in caches if corruptions else ():
            size = cache.network.input.image_size
            require_image_size(size, what=f"the {cache.what}'s view")
        result = EvaluationResult({}, notes=shifts.notes())
        result.notes.extend([_ON_THE_FLY] if corruptions else [])
        corrupted: list[CorruptionResult] = []
        shifted: dict[str, list[Shift]] = {}
        while caches:  # so that the embeddings of one network at a time are in memory
            classifier = FrozenClassifier(caches.pop(0), options.head, index)
            if corruptions:
                errors = corruption_errors(
                    classifier,
                    corruptions,
                    options.wanted_severities,
                    seed=options.seed,
                    folder=subject.output,
                )
                corrupted.append(errors)
                result.metrics.update(errors.metrics())
                result.notes.extend(errors.notes(classifier.network.input.image_size))
            rows = measure_shifts(classifier, shifts, frames_k=options.frames_k)
            prefix = "teacher_" if classifier.role == "teacher" else ""
            for row in rows:
                result.metrics[prefix + row.metric] = row.plain
                result.metrics[f"{prefix}{row.metric}_restricted"] = row.restricted
            shifted[classifier.role] = rows
        if corrupted:
            result.tables.append(_corruption_table(corrupted))
        if any(shifted.values()):
            result.tables.append(_shift_table(shifted))
        return result


def sample_images(index: np.ndarray, number: int | None, *, seed: int) -> np.ndarray:
    """Return some of the images at `index`, drawn by the seed, in order; None: all.

    Raises:
        DistillError: There are fewer images than `number`.
    """
    if number is None:
        return index
    if number > len(index):
        raise DistillError(
            f"--num-images is {number} and there are {len(index)} validation images; leave it out "
            "to take all of them"
        )
    return np.sort(np.random.default_rng(seed).choice(index, number, replace=False))


def _teacher(subject: Subject, options: Robustness.Options) -> NetworkCache | None:
    """Load the teacher of the options, else the one of the run, if there is one."""
    teacher = None if options.no_teacher else reference_teacher(subject.path, options)
    if teacher is None:
        return None
    try:
        return teacher_cache(teacher, subject.embedder)
    except DistillError as error:
        if options.teacher is not None:
            raise
        raise DistillError(f"the run's teacher: {error}; or pass --no-teacher") from error


def _corruption_table(results: Sequence[CorruptionResult]) -> Table:
    """Return a row per corruption: error and gap to the clean error of every network."""
    header = ["error"]
    columns = [["clean", *results[0].errors, "mean"]]
    for result in results:
        header += [result.role, "- clean"]
        errors = [*corruption_means(result.errors).values(), mean_error(result.errors)]
        columns.append([f"{error:.4f}" for error in (result.clean_error, *errors)])
        columns.append(["", *(f"{error - result.clean_error:+.4f}" for error in errors)])
    if any(result.mce is not None for result in results):
        columns[0].append("mCE")
        for number, result in enumerate(results):
            columns[2 * number + 1].append("-" if result.mce is None else f"{result.mce:.4f}")
            columns[2 * number + 2].append("")
    return Table(header, list(zip(*columns, strict=True)))


def _shift_table(shifts: Mapping[str, Sequence[Shift]]) -> Table:
    """Return a row per set: plain and restricted accuracy of every network."""
    header = ["accuracy"]
    for role in shifts:
        header += [role, "among its classes"]
    rows = []
    for of_networks in zip(*shifts.values(), strict=True):
        cells = [of_networks[0].title]
        for shift in of_networks:
            cells += [f"{shift.plain:.4f}", f"{shift.restricted:.4f}"]
        rows.append(cells)
    return Table(header, rows)
