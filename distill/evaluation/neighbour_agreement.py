"""How much of the teacher's neighbourhoods a student keeps: the quantity that CompRess optimizes.

Agreement at k is the mean over images of |kNN_teacher(i) and kNN_student(i)| / k, where both look
for the k nearest other images of the same set, by cosine similarity. Neighbours drawn by chance
agree by k / (N - 1). Needs no labels.

Both sets are read in blocks, so that memory does not grow with the number of images; a seeded
sample of the images may stand for all, compared with all.

Shapes: N images, Dt and Ds widths, B images of a block, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.errors import DistillError
from distill.evaluation.requirements import require_ks, require_seed
from distill.evaluation.row_blocks import BLOCK_BYTES, Rows, rows_per_block
from distill.evaluation.search import nearest_others, num_shared


@dataclass(frozen=True)
class NeighbourAgreement:
    """What teacher and student have in common.

    Attributes:
        agreement: By k, in [0, 1].
        num_images: N, the images that neighbours are looked for among.
        num_sampled: Images whose neighbours were compared.
    """

    agreement: dict[int, float]
    num_images: int
    num_sampled: int

    def chance(self, k: int) -> float:
        """Return what neighbours drawn by chance agree by."""
        return k / (self.num_images - 1)


def neighbour_agreement(
    teacher: Rows,
    student: Rows,
    *,
    ks: Sequence[int] = (1, 5, 20),
    num_sampled: int | None = None,
    seed: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> NeighbourAgreement:
    """Compare neighbourhoods for several k, from one search each for the largest.

    Args:
        teacher: (N, Dt), any scale; an array or a memory map.
        student: (N, Ds), any scale, of the same images in the same order.
        ks: Numbers of neighbours, each from 1 to N - 1.
        num_sampled: Images whose neighbours are compared, at least 1; None: all.
        seed: Of the sample, from 0 to 2^31 - 1.
        block_bytes: Of a block of rows as float32, see `nearest_neighbours`.

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
    return NeighbourAgreement(agreement, num_images, len(images))


def _require(num_teacher: int, num_student: int, num_sampled: int | None) -> None:
    if num_teacher != num_student:
        raise DistillError(
            f"the teacher embedded {num_teacher} images and the student {num_student}; neighbours "
            "can be compared when both embed the same images in the same order"
        )
    if num_teacher < 2:
        raise DistillError(
            f"there is {num_teacher} image, neighbours need 2 or more; embed more images"
        )
    if num_sampled is not None and num_sampled < 1:
        raise DistillError(f"the number of sampled images is {num_sampled}, it must be 1 or more")
