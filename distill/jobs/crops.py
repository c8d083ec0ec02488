"""The views of an image that a student sees in a step, and which students can see them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from distill.config import TrainConfig
from distill.data.transforms import View, small_view, training_view
from distill.engine.resolve import given
from distill.errors import DistillError
from distill.networks import EmbeddingNetwork


class StudentViews(NamedTuple):
    """What makes each view, and the side of each in pixels; the first is the main one."""

    views: list[View]
    sizes: list[int]


def student_views(config: TrainConfig, *, crop_fraction: float) -> StudentViews:
    """Return the views that a resolved configuration asks for: crops, then small crops.

    Args:
        config: Resolved.
        crop_fraction: Of the student, see `training_view`.
    """
    options, size = config.views, given(config.images.image_size)
    crop = training_view(
        size,
        given(options.augmentation),
        min_crop_area=options.min_crop_area,
        crop_fraction=crop_fraction,
    )
    views, sizes = [crop] * options.student_crops, [size] * options.student_crops
    if options.small_crops:
        small = given(options.small_crop_size)
        views += [small_view(small)] * options.small_crops
        sizes += [small] * options.small_crops
    return StudentViews(views, sizes)


def require_crops(config: TrainConfig, student: EmbeddingNetwork) -> None:
    """Refuse crops that cannot be made, do not differ, or that the student cannot take.

    Args:
        config: Resolved.
        student: Of the job.

    Raises:
        DistillError: An area without crops, equal views, or small crops that are too large or too
            small.
    """
    options, size = config.views, given(config.images.image_size)
    area = options.min_crop_area
    if area is not None and options.augmentation == "none":
        raise DistillError(
            f"--min-crop-area {area:g} goes with crops, and --augmentation none makes none; leave "
            "one out"
        )
    if options.student_crops > 1 and options.augmentation == "none":
        raise DistillError(
            f"--augmentation none makes all --student-crops {options.student_crops} of an image "
            "equal; use crop-flip or crop, or --student-crops 1"
        )
    if not options.small_crops:
        return
    if options.augmentation != "crop-flip":
        raise DistillError(
            f"--small-crops {options.small_crops} goes with --augmentation crop-flip, not with "
            f"{options.augmentation}: a small crop of a digit or a sign shows nothing; leave it out"
        )
    small, least = given(options.small_crop_size), student.spec.min_image_size
    if small > size:
        raise DistillError(
            f"--small-crop-size {small} is above --image-size {size}; use {size} or less"
        )
    if small < least or not _takes(student, small):
        raise DistillError(
            f"{student.spec.name} cannot take small crops of {small} x {small} pixels; use another "
            f"--small-crop-size, from {least} to {size}, or leave out --small-crops"
        )


def _takes(student: EmbeddingNetwork, size: int) -> bool:
    """Return whether the student embeds images of a side as wide as its own."""
    was_training = student.training
    student.eval()
    try:
        with torch.no_grad():
            width = student(torch.zeros(1, 3, size, size)).shape[1]
    except (RuntimeError, AssertionError, ValueError):
        return False
    finally:
        student.train(was_training)
    return width == student.embedding_dim
