"""How a run's teacher sees the images, from its embeddings on disk; nothing is embedded here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config import TeacherOptions
from distill.embedding_cache import EmbeddingStore
from distill.errors import DistillError
from distill.jobs.evaluator import Evaluator
from distill.jobs.images import BadImages
from distill.jobs.network_cache import NetworkCache, Split, in_memory, load_teacher_of
from distill.jobs.report_neighbours import Eyes
from distill.jobs.report_thumbnails import Thumbnails
from distill.networks import place

if TYPE_CHECKING:
    from distill.evaluation.embed import Embeddings
    from distill.jobs.report import ReportOptions

_PATHS = ("teacher_weights", "teacher_cache")


def teacher_eyes(
    run_options: Mapping[str, Any], evaluator: Evaluator, options: ReportOptions
) -> Eyes | str:
    """Return how the teacher sees the images of an evaluator, or a sentence why that is not known.

    Args:
        run_options: Of the run.
        evaluator: Images, device and precision.
        options: Of the report.
    """
    if not run_options.get("teacher"):
        return "the run has no teacher"
    if run_options.get("teacher_view", "centre") != "centre":
        return "the teacher looked at the student's views, and its embeddings were not kept"
    try:
        cache = _cache(_teacher_options(run_options, options), evaluator, run_options)
        train = _embeddings(cache, "train")
        if evaluator.data.val is None or len(evaluator.val_index) == 0:
            val = train
        else:
            val = _embeddings(cache, "val")
    except DistillError as error:
        return str(error).rstrip(".")
    data = evaluator.data
    return Eyes(train, val, Thumbnails(data.train), Thumbnails(data.val or data.train))


def _teacher_options(run_options: Mapping[str, Any], options: ReportOptions) -> TeacherOptions:
    found = {
        field.name: run_options[field.name]
        for field in fields(TeacherOptions)
        if run_options.get(field.name) is not None
    }
    found.update({name: Path(found[name]) for name in _PATHS if name in found})
    teacher = TeacherOptions(**found)
    if options.teacher_weights is None:
        return teacher
    return replace(teacher, teacher_weights=options.teacher_weights)


def _cache(
    options: TeacherOptions, evaluator: Evaluator, run_options: Mapping[str, Any]
) -> NetworkCache:
    return NetworkCache(
        network=place(load_teacher_of(options), evaluator.device),
        what="teacher",
        evaluator=evaluator,
        bad_images=BadImages("skip"),  # the student's pass has refused them, if they are to be
        folder=options.teacher_cache,
        dtype=options.cache_dtype,
        seed=int(run_options.get("seed", 0)),
    )


def _embeddings(cache: NetworkCache, split: Split) -> Embeddings:
    """Return the embeddings of a split.

    Raises:
        DistillError: When they are not on the disk, or not all of them.
    """
    store = EmbeddingStore.find(cache.task(split, view=0).folder)
    if store is None or not store.done().all():
        raise DistillError(
            f"its embeddings of the {split} images are not on this disk; `distill cache` with the "
            "run's teacher and data keeps them"
        )
    evaluator = cache.evaluator
    images = evaluator.data.train if split == "train" else evaluator.data.val
    assert images is not None
    index = evaluator.train_index if split == "train" else evaluator.val_index
    return in_memory(cache.embeddings(split).table, images, index)
