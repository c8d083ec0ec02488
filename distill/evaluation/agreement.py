"""How much of the teacher's neighborhoods a student keeps: the quantity that CompRess optimizes.

Agreement at k is the mean over images of |kNN_teacher(i) and kNN_student(i)| / k, where both look
for the k nearest other images of the same set, by cosine similarity. Neighbors drawn by chance
agree by k / (N - 1). Needs no labels.

Both sets are read in blocks, so that memory does not grow with the number of images; a seeded
sample of the images may stand for all, compared with all.

Shapes: N images, Dt and Ds widths, B images of a block, k neighbors.

Measures how much of its teacher's neighborhoods a trained student keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill import distributed
from distill.config import TeacherOptions
from distill.embeddings.evaluator import Split
from distill.embeddings.search import (
    BLOCK_BYTES,
    Rows,
    nearest_others,
    num_shared,
    require_ks,
    require_seed,
    rows_per_block,
)
from distill.errors import DistillError
from distill.evaluation.base import Evaluation, teacher_cache


@dataclass(frozen=True)
class NeighborAgreement:
    """What teacher and student have in common.

    Attributes:
        agreement: By k, in [0, 1].
        num_images: N, the images that neighbors are looked for among.
        num_sampled: Images whose neighbors were compared.
    """

    agreement: dict[int, float]
    num_images: int
    num_sampled: int

    def chance(self, k: int) -> float:
        """Return what neighbors drawn by chance agree by."""
        return k / (self.num_images - 1)


def neighbor_agreement(
    teacher: Rows,
    student: Rows,
    *,
    ks: Sequence[int] = (1, 5, 20),
    num_sampled: int | None = None,
    seed: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> NeighborAgreement:
    """Compare neighborhoods for several k, from one search each for the largest.

    Args:
        teacher: (N, Dt), any scale; an array or a memory map.
        student: (N, Ds), any scale, of the same images in the same order.
        ks: Numbers of neighbors, each from 1 to N - 1.
        num_sampled: Images whose neighbors are compared, at least 1; None: all.
        seed: Of the sample, from 0 to 2^31 - 1.
        block_bytes: Of a block of rows as float32, see `nearest_neighbors`.

    Raises:
        DistillError: Embeddings of different images or not finite, no k or one outside 1..N - 1,
            no image to compare.
    """
    num_images = len(teacher)
    _require(num_images, len(student), num_sampled)
    require_seed(seed)
    require_ks(ks, most=num_images - 1, what="the number of other images")
    rng = np.random.default_rng(seed)
    images = np.sort(rng.permutation(num_images)[:num_sampled])
    shared = dict.fromkeys(sorted(set(ks)), 0)
    size = rows_per_block(max(teacher.shape[1], student.shape[1]), block_bytes)
    for block in np.split(images, range(size, len(images), size)):
        nearest = [
            nearest_others(features, block, k=max(ks), block_bytes=block_bytes)
            for features in (teacher, student)
        ]
        for k in shared:
            shared[k] += num_shared(nearest[0][:, :k], nearest[1][:, :k])
    agreement = {k: count / (k * len(images)) for k, count in shared.items()}
    return NeighborAgreement(agreement, num_images, len(images))


def _require(num_teacher: int, num_student: int, num_sampled: int | None) -> None:
    if num_teacher != num_student:
        raise DistillError(
            f"the teacher embedded {num_teacher} images and the student {num_student}; neighbors "
            "can be compared when both embed the same images in the same order"
        )
    if num_teacher < 2:
        raise DistillError(
            f"there is {num_teacher} image, neighbors need 2 or more; embed more images"
        )
    if num_sampled is not None and num_sampled < 1:
        raise DistillError(f"the number of sampled images is {num_sampled}, it must be 1 or more")


@dataclass(frozen=True)
class Agreement:
    """How much teacher and student agree, and on what.

    Attributes:
        found: By number of neighbors.
        images: What the images are called.
    """

    found: NeighborAgreement
    images: str

    def metrics(self) -> dict[str, float]:
        """Return the numbers by the names that metrics.json gets."""
        return {f"neighbor_agreement_k{k}": share for k, share in self.found.agreement.items()}


def measure_agreement(
    evaluation: Evaluation,
    teacher: TeacherOptions,
    *,
    ks: Sequence[int],
    num_images: int,
    seed: int,
) -> Agreement:
    """Compare neighbors among the validation images, or among the training images without any.

    Args:
        evaluation: The student and its images.
        teacher: How to load the teacher.
        ks: Numbers of neighbors.
        num_images: Images whose neighbors are compared, at most.
        seed: Draws them.

    Raises:
        DistillError: A teacher that cannot be loaded, or see `neighbor_agreement`.
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
    found = neighbor_agreement(of_teacher, of_student, ks=ks, num_sampled=num_images, seed=seed)
    return Agreement(found, images.name)
