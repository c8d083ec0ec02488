"""What can be asked of `distill robustness`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.evaluation.frozen_head import HeadName
from distill.jobs.teacher_beside import BesideOptions


@dataclass(frozen=True)
class RobustnessOptions(BesideOptions):
    """How `distill robustness` measures."""

    corruptions: tuple[str, ...] = ()
    """Names of ImageNet-C; none given: all fifteen; `none`: none of them."""
    severities: tuple[int, ...] = ()
    """From 1 to 5; none given: all five."""
    head: HeadName = "nn"
    """What predicts from embeddings, fitted on clean training images: nearest neighbour or
    logistic regression."""
    num_images: int | None = None
    """Validation images to corrupt, drawn by the seed; None: all."""
    seed: int = 0
    """Of the drawn images and of the corruptions."""
    no_teacher: bool = False
    """Leave the run's teacher out."""
    shifted: tuple[Path, ...] = ()
    """Folders of class folders of other images: ImageNet-A, -R, -v2, ObjectNet."""
    class_map: Path | None = None
    """JSON or CSV file that says which training classes the names of --shifted and --frames stand
    for; None: they are training classes."""
    frames: Path | None = None
    """CSV file of neighbouring video frames: anchor,frame,label and optionally offset."""
    frames_k: int = 10
    """An anchor is right at pm-k if all its neighbours within k frames are."""
