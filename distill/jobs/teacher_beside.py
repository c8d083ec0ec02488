"""The teacher that a student is measured beside: the one named, else the one of its run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from distill.config import TeacherOptions
from distill.engine.run_directory import read_config
from distill.errors import DistillError
from distill.jobs.evaluator import Evaluator
from distill.jobs.images import BadImages
from distill.jobs.measurement import MeasurementOptions
from distill.jobs.network_cache import NetworkCache, load_teacher_of
from distill.networks import place

_PATHS = ("teacher_weights", "teacher_cache")


@dataclass(frozen=True)
class BesideOptions(MeasurementOptions):
    """The options of a measure that puts a teacher beside the student."""

    teacher: str | None = None
    """Teacher beside the student; None: the one of the run, if it is a run."""
    teacher_weights: Path | None = None
    """Weights of the teacher; None: those of the run, or the published ones of --teacher."""
    teacher_image_size: int | None = None
    """Side of the teacher's view in pixels; None: that of the run, or the one --teacher was trained
    with."""


def named_teacher(run_or_weights: Path, options: BesideOptions) -> TeacherOptions | None:
    """Return how to load the teacher that was asked for, else the one of the run.

    Returns:
        None without either.

    Raises:
        DistillError: Options of a teacher, and there is none that they could be of.
    """
    given = (options.teacher, options.teacher_weights, options.teacher_image_size)
    if options.teacher is not None:
        return TeacherOptions(*given)
    is_run = (run_or_weights / "config.yaml").exists()
    of_run = teacher_of_run(read_config(run_or_weights)) if is_run else None
    if of_run is None:
        if any(one is not None for one in given):
            raise DistillError(
                "--teacher-weights and --teacher-image-size need a teacher, and "
                f"{run_or_weights} names none; add --teacher"
            )
        return None
    return replace(
        of_run,
        teacher_weights=options.teacher_weights or of_run.teacher_weights,
        teacher_image_size=options.teacher_image_size or of_run.teacher_image_size,
        # A folder of the run's choice holds the embeddings of the run's images.
        teacher_cache=of_run.teacher_cache if options.data is None else None,
    )


def teacher_of_run(run_options: Mapping[str, Any]) -> TeacherOptions | None:
    """Return how to load a run's teacher; None for a run without, as pre-training is one."""
    found = {
        field.name: run_options[field.name]
        for field in fields(TeacherOptions)
        if run_options.get(field.name) is not None
    }
    if "teacher" not in found:
        return None
    found.update({name: Path(found[name]) for name in _PATHS if name in found})
    teacher = TeacherOptions(**found)
    if run_options.get("teacher_view") == "student":
        return replace(teacher, teacher_image_size=run_options["image_size"])
    return teacher


def teacher_cache(teacher: TeacherOptions, evaluator: Evaluator) -> NetworkCache:
    """Load a teacher; its embeddings of the evaluator's images lie where training left them.

    Raises:
        DistillError: A teacher that cannot be loaded.
    """
    return NetworkCache(
        network=place(load_teacher_of(teacher), evaluator.device),
        what="teacher",
        evaluator=evaluator,
        # The student's pass has refused them, if they are to be.
        bad_images=BadImages("skip", most=sys.maxsize),
        folder=teacher.teacher_cache,
        dtype=teacher.cache_dtype,
    )
