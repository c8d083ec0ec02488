"""How a run's teacher sees the images, from its embeddings on disk; nothing is embedded here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError
from distill.jobs.evaluator import Evaluator, Split
from distill.jobs.network_cache import NetworkCache
from distill.jobs.report_neighbours import Eyes
from distill.jobs.report_thumbnails import Thumbnails
from distill.jobs.teacher_beside import teacher_cache, teacher_of_run

if TYPE_CHECKING:
    from distill.evaluation.embed import Embeddings
    from distill.jobs.report import ReportOptions


def teacher_eyes(
    run_options: Mapping[str, Any], evaluator: Evaluator, options: ReportOptions
) -> Eyes | str:
    """Return how the teacher sees the images of an evaluator, or a sentence why that is not known.

    Args:
        run_options: Of the run.
        evaluator: Images, device and precision.
        options: Of the report.
    """
    teacher = teacher_of_run(run_options)
    if teacher is None:
        return "the run has no teacher"
    if run_options.get("teacher_view", "centre") != "centre":
        return "the teacher looked at the student's views, and its embeddings were not kept"
    try:
        if options.teacher_weights is not None:
            teacher = replace(teacher, teacher_weights=options.teacher_weights)
        cache = teacher_cache(teacher, evaluator)
        train = _embeddings(cache, "train")
        if evaluator.data.val is None or len(evaluator.val_index) == 0:
            val = train
        else:
            val = _embeddings(cache, "val")
    except DistillError as error:
        return str(error).rstrip(".")
    data = evaluator.data
    return Eyes(train, val, Thumbnails(data.train), Thumbnails(data.val or data.train))


def _embeddings(cache: NetworkCache, split: Split) -> Embeddings:
    """Return the embeddings of a split.

    Raises:
        DistillError: When they are not on the disk, or not all of them.
    """
    if not cache.is_complete(split):
        raise DistillError(
            f"its embeddings of the {split} images are not on this disk; `distill cache` with the "
            "run's teacher and data keeps them"
        )
    return cache.stored(split).in_memory()
