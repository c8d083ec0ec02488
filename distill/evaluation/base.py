"""Refuses embeddings and labels that a measure would mean nothing with, one sentence each.

What all jobs that measure a trained student share: its options, its data, where numbers go.

The teacher that a student is measured beside: the one named, else the one of its run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from os.path import abspath, expanduser
from pathlib import Path
from typing import Any, Literal

from distill import distributed
from distill.config import CacheDtype, TeacherOptions
from distill.data.sources import BadImages, ImageData, data_or_default, open_images
from distill.device import pick_device, pick_precision
from distill.embeddings.cache import NetworkCache, StoredEmbeddings, load_teacher_of
from distill.embeddings.evaluator import EmbeddedSplits, Evaluator
from distill.errors import DistillError
from distill.models.networks import EmbeddingNetwork, prepare_for_device
from distill.models.weights import read_description
from distill.run_directory import add_metrics, read_config
from students.registry import build_student
from teachers.load import load_trained


@dataclass(frozen=True)
class MeasurementOptions:
    """What is measured, on which images and where; every measure adds its own options."""

    data: str | None = None
    """As for training; None: the data of the run, else $DISTILL_DATA, else digits."""
    student: str | None = None
    """Architecture, for a weights file that does not say it."""
    image_size: int | None = None
    """Side of the view in pixels, for a weights file that does not say it; None: 224."""
    output: Path | None = None
    """Directory whose metrics.json receives the numbers; None: the run's, if it is a run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do about a file that cannot be decoded."""
    max_bad_images: int | None = None
    """How many may be skipped; None: a hundredth of the images, and at least ten."""
    num_workers: int | None = None
    """Processes that load images; None: by cores and data."""
    cache: Path | None = None
    """Folder that keeps the embeddings; None: in the cache folder, $DISTILL_CACHE or
    ~/.cache/distill."""
    cache_dtype: CacheDtype = "fp16"
    """Storage of the embeddings."""


@dataclass(frozen=True)
class Evaluation:
    """A student that is ready to be measured.

    Attributes:
        network: The student, on the evaluator's device.
        evaluator: The setting.
        cache: Its embeddings on disk.
        output: Directory whose metrics.json receives the numbers; None: they are not kept.
        other_data: Name of the data, when it is not what the run was trained on.
    """

    network: EmbeddingNetwork
    evaluator: Evaluator
    cache: NetworkCache
    output: Path | None
    other_data: str | None = None

    def require_measurable(self) -> None:
        """Refuse data without what a measure needs.

        Raises:
            DistillError: No validation images, no labels, or one class.
        """
        reason = self.evaluator.unavailable_reason()
        if reason is not None:
            raise DistillError(reason)

    def stored(self) -> tuple[StoredEmbeddings, StoredEmbeddings]:
        """Return the embeddings of training and validation images, made once and kept on disk.

        Several processes share the pass; from then on the first is alone.

        Raises:
            DistillError: When the data has no labels to measure with, or the disk no room.
        """
        self.require_measurable()
        found = self.cache.stored("train"), self.cache.stored("val")
        distributed.release_others()
        return found

    def splits(self) -> EmbeddedSplits:
        """Return what `stored` does, in memory."""
        train, val = self.stored()
        return EmbeddedSplits(train.in_memory(), val.in_memory())

    def named(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return numbers by names that tell data other than the run's."""
        return named_by_data(metrics, self.other_data)

    def keep(self, metrics: dict[str, Any]) -> None:
        """Add numbers to metrics.json, where there is a place for it."""
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
            add_metrics(self.output, metrics)


def named_by_data(metrics: Mapping[str, Any], other_data: str | None) -> dict[str, Any]:
    """Return numbers by names such as `nn_accuracy@flowers`, of data that a run is not of."""
    suffix = "" if other_data is None else f"@{other_data}"
    return {name + suffix: value for name, value in metrics.items()}


def open_evaluation(
    run_or_weights: Path,
    options: MeasurementOptions,
    *,
    open_data: Callable[[str], ImageData] = open_images,
) -> Evaluation:
    """Load a trained student and open the images that it is measured on.

    Args:
        run_or_weights: A run directory, the .safetensors file that it holds, or other weights with
            `options.student`.
        options: What to measure on; data and precision are those of the run by default.
        open_data: Opens what `--data` names.

    Raises:
        DistillError: No such run, weights that do not fit, data or a device that is not there.
    """
    is_run = (run_or_weights / "config.yaml").exists()
    run_options = read_config(run_or_weights) if is_run else {}
    network = _load(run_or_weights, options)
    device = distributed.start(pick_device(options.device))
    bad_images = BadImages(options.on_bad_image, options.max_bad_images)
    data = open_data(data_or_default(options.data or run_options.get("data")))
    evaluator = Evaluator(
        data=data,
        train_index=bad_images.good_indices(data.train),
        val_index=bad_images.good_indices(data.val),
        device=device,
        precision=pick_precision(run_options.get("precision", "auto"), device),
        num_workers=options.num_workers,
        bad_images=bad_images,
    )
    network = prepare_for_device(network, device)
    cache = NetworkCache(
        network=network,
        what="student",
        evaluator=evaluator,
        bad_images=bad_images,
        folder=options.cache,
        dtype=options.cache_dtype,
    )
    output = options.output or (run_or_weights if is_run else None)
    is_named = options.data not in (None, run_options.get("data"))
    is_other = is_run and is_named and data.name.lower() != _name(run_options.get("data"))
    return Evaluation(network, evaluator, cache, output, data.name if is_other else None)


def _name(data: str | None) -> str:
    """Return what `open_images` calls a set, wherever it lies, in small letters."""
    return Path(abspath(expanduser(data or "digits"))).name.lower()


def _load(run_or_weights: Path, options: MeasurementOptions) -> EmbeddingNetwork:
    if options.student is None:
        if options.image_size is not None:
            raise DistillError(
                "--image-size goes with --student: a run and a student.safetensors know their own; "
                "leave it out"
            )
        return load_trained(run_or_weights)
    if run_or_weights.is_dir() or read_description(run_or_weights) is not None:
        raise DistillError(
            f"{run_or_weights} brings its own architecture and size; leave out --student"
        )
    return build_student(
        options.student, image_size=options.image_size, weights=run_or_weights
    ).eval()


_PATHS = ("teacher_weights", "teacher_cache")


@dataclass(frozen=True)
class ReferenceTeacherOptions(MeasurementOptions):
    """The options of a measure that puts a teacher beside the student."""

    teacher: str | None = None
    """Teacher beside the student; None: the one of the run, if it is a run."""
    teacher_weights: Path | None = None
    """Weights of the teacher; None: those of the run, or the published ones of --teacher."""
    teacher_image_size: int | None = None
    """Side of the teacher's view in pixels; None: that of the run, or the one --teacher was trained
    with."""


def reference_teacher(
    run_or_weights: Path, options: ReferenceTeacherOptions
) -> TeacherOptions | None:
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
        network=prepare_for_device(load_teacher_of(teacher), evaluator.device),
        what="teacher",
        evaluator=evaluator,
        # The student's pass has refused them, if they are to be.
        bad_images=BadImages("skip", most=sys.maxsize),
        folder=teacher.teacher_cache,
        dtype=teacher.cache_dtype,
    )
