"""Fills in the sections of a run's report that show its images as the student sees them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.engine.run_directory import read_config
from distill.errors import DistillError
from distill.evaluation.embed import Embeddings
from distill.evaluation.embedding_map import MAX_IMAGES, embedding_map
from distill.jobs.evaluator import Evaluator, Split
from distill.jobs.measurement import open_evaluation
from distill.jobs.network_cache import NetworkCache
from distill.jobs.report_class_names import read_class_names, rename_classes
from distill.jobs.report_clusters import cluster_section
from distill.jobs.report_neighbours import Eyes, neighbour_section
from distill.jobs.report_teacher import teacher_eyes
from distill.jobs.report_thumbnails import Thumbnails
from distill.report.content import MapSection

if TYPE_CHECKING:
    from distill.jobs.report import ReportOptions


def picture_sections(path: Path, options: ReportOptions) -> dict[str, Any]:
    """Return `clusters`, `neighbours`, `map` and `left_out` of a `RunContent`.

    Args:
        path: A run directory with a trained network.
        options: What is shown.

    Raises:
        DistillError: See `distill.jobs.measurement.open_evaluation`.
    """
    evaluation = open_evaluation(path, options.measurement())
    evaluator = _sampled(evaluation.evaluator, options)
    cache = replace(evaluation.cache, evaluator=evaluator)
    if options.class_names is not None:
        rename_classes(evaluator.data, read_class_names(options.class_names))
    student = _student_eyes(cache)
    left_out: dict[str, str] = {}
    sections: dict[str, Any] = {"left_out": left_out}
    makers = {
        "clusters": lambda: cluster_section(student, options.seed),
        "neighbours": lambda: neighbour_section(
            student, teacher_eyes(read_config(path), evaluator, options), options.seed
        ),
        "map": lambda: _map_section(student, options.seed),
    }
    for name, make in makers.items():
        try:
            sections[name] = make()
        except DistillError as error:
            left_out[name] = str(error).rstrip(".")
    reason = evaluator.why_not()
    if reason is not None:
        left_out["summary"] = reason
    return sections


def _sampled(evaluator: Evaluator, options: ReportOptions) -> Evaluator:
    """Return the evaluator with at most `num_images` images of a split."""
    rng = np.random.default_rng(options.seed)
    train, val = (
        index
        if len(index) <= options.num_images
        else np.sort(rng.choice(index, options.num_images, replace=False))
        for index in (evaluator.train_index, evaluator.val_index)
    )
    return replace(evaluator, train_index=train, val_index=val)


def _student_eyes(cache: NetworkCache) -> Eyes:
    evaluator = cache.evaluator
    train_images, val_images = evaluator.data.train, evaluator.data.val
    train = _embedded(cache, "train")
    if val_images is None or len(evaluator.val_index) == 0:
        return Eyes(train, train, Thumbnails(train_images), Thumbnails(train_images))
    val = _embedded(cache, "val")
    return Eyes(train, val, Thumbnails(train_images), Thumbnails(val_images))


def _embedded(cache: NetworkCache, split: Split) -> Embeddings:
    """Return the embeddings of what is shown; those of a sample alone are not kept."""
    images, index = cache.evaluator.split(split)
    if len(index) == len(images) or cache.is_complete(split):
        return cache.stored(split).in_memory()
    return cache.evaluator.embed(cache.network, images, index, f"{cache.what}, {split}")


def _map_section(student: Eyes, seed: int) -> MapSection:
    shown, images = student.queries, student.query_pictures.images
    rows = np.arange(len(shown.index))
    if len(rows) > MAX_IMAGES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_IMAGES, replace=False))
    points = embedding_map(shown.features[rows], seed=seed)
    labels = shown.labels[rows]
    has_labels = images.classes is not None and labels.min() >= 0
    return MapSection(
        facts=f"{len(rows):,} images of {images.name} as the student sees them: PCA, then t-SNE. "
        "Who is near whom means something; how far apart groups lie does not.",
        points=points,
        labels=labels if has_labels else None,
        classes=images.classes or (),
    )
