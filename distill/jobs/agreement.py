"""Measures how much of its teacher's neighbourhoods a trained student keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill import distributed
from distill.config import TeacherOptions
from distill.errors import DistillError
from distill.evaluation.neighbour_agreement import NeighbourAgreement, neighbour_agreement
from distill.jobs.evaluator import Split
from distill.jobs.measurement import Evaluation
from distill.jobs.teacher_beside import teacher_cache


@dataclass(frozen=True)
class Agreement:
    """How much teacher and student agree, and on what.

    Attributes:
        found: By number of neighbours.
        images: What the images are called.
    """

    found: NeighbourAgreement
    images: str

    def metrics(self) -> dict[str, float]:
        """Return the numbers by the names that metrics.json gets."""
        return {f"neighbour_agreement_k{k}": share for k, share in self.found.agreement.items()}


def measure_agreement(
    evaluation: Evaluation,
    teacher: TeacherOptions,
    *,
    ks: Sequence[int],
    num_images: int,
    seed: int,
) -> Agreement:
    """Compare neighbours among the validation images, or among the training images without any.

    Args:
        evaluation: The student and its images.
        teacher: How to load the teacher.
        ks: Numbers of neighbours.
        num_images: Images whose neighbours are compared, at most.
        seed: Draws them.

    Raises:
        DistillError: A teacher that cannot be loaded, or see `neighbour_agreement`.
    """
    if num_images < 1:
        raise DistillError(f"--agreement-images is {num_images}, it must be at least 1")
    evaluator = evaluation.evaluator
    split: Split = "val" if evaluator.data.val is not None else "train"
    images, _ = evaluator.split(split)
    caches = teacher_cache(teacher, evaluator), evaluation.cache
    readable = [cache.stored(split).index for cache in caches]
    distributed.release_others()  # what follows is for one process
    both = np.intersect1d(readable[0], readable[1])
    of_teacher, of_student = (cache.stored(split, both).features for cache in caches)
    found = neighbour_agreement(of_teacher, of_student, ks=ks, num_sampled=num_images, seed=seed)
    return Agreement(found, images.name)
