"""The teacher that a student is measured beside: the one named, else the one of its run."""

from __future__ import annotations

from pathlib import Path

from distill.config import TeacherOptions
from distill.engine.run_directory import read_config
from distill.errors import DistillError
from distill.jobs.network_cache import load_teacher_of
from distill.jobs.robustness_options import RobustnessOptions
from distill.networks import EmbeddingNetwork


def teacher_beside(run_or_weights: Path, options: RobustnessOptions) -> EmbeddingNetwork | None:
    """Load the teacher that was asked for, else the one of the run.

    Returns:
        None without either, or with --no-teacher.

    Raises:
        DistillError: Flags that contradict each other, or a teacher that cannot be loaded.
    """
    given = (options.teacher, options.teacher_weights, options.teacher_image_size)
    if options.no_teacher:
        if any(one is not None for one in given):
            raise DistillError("--no-teacher leaves the teacher out; leave out --teacher... or it")
        return None
    if options.teacher is not None:
        return load_teacher_of(TeacherOptions(*given))
    if any(one is not None for one in given):
        raise DistillError(
            "--teacher-weights and --teacher-image-size go with --teacher; name the teacher, too"
        )
    if not (run_or_weights / "config.yaml").exists():
        return None
    run = read_config(run_or_weights)
    if run.get("teacher") is None:  # a run of pre-training has none
        return None
    weights = run.get("teacher_weights")
    try:
        return load_teacher_of(
            TeacherOptions(run["teacher"], weights and Path(weights), run.get("teacher_image_size"))
        )
    except DistillError as error:
        raise DistillError(f"the run's teacher: {error}; or pass --no-teacher") from error
