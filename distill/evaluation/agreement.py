"""Neighbor agreement: the share of the teacher's nearest neighbors that the student has, too.

Agreement at k is the mean over images of |kNN_teacher(i) and kNN_student(i)| / k, where kNN are the
k nearest other images of the same set by cosine similarity; random neighbors give k / (N - 1). It
is what CompRess optimizes, and needs no labels.

Embeddings are read in blocks, so that memory does not grow with the number of images. The mean may
be over a seeded sample of the images, whose neighbors are still searched among all.

Shapes: N images, Dt and Ds widths, k neighbors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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


def neighbor_agreement(
    teacher: Rows,
    student: Rows,
    *,
    ks: Sequence[int] = (1, 5, 20),
    num_sampled: int | None = None,
    seed: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> dict[int, float]:
    """Compare neighborhoods for several k, from one search in each set.

    Args:
        teacher: (N, Dt), any scale; an array or a memory map.
        student: (N, Ds), any scale, of the same images in the same order.
        ks: Numbers of neighbors, each from 1 to N - 1.
        num_sampled: Images whose neighbors are compared, at least 1; None, or N and more: all.
        seed: Of the sample, from 0 to 2^31 - 1.
        block_bytes: Of a block of rows as float32, see `nearest_neighbors`.

    Returns:
        Agreement in [0, 1] by k, in the order of k.

    Raises:
        DistillError: Embeddings of different images or not finite, no k or one outside 1..N - 1,
            no image to compare.

    Example:
        >>> import numpy as np
        >>> circle = np.deg2rad([0, 10, 50, 110])
        >>> teacher = np.stack([np.cos(circle), np.sin(circle)], axis=1)
        >>> neighbor_agreement(teacher, teacher[[0, 1, 3, 2]], ks=(1, 2))
        {1: 0.5, 2: 0.5}
    """
    num_images = len(teacher)
    if num_images != len(student):
        raise DistillError(
            f"the teacher embedded {num_images} images and the student {len(student)}; neighbors "
            "can be compared when both embed the same images in the same order"
        )
    if num_images < 2:
        raise DistillError(
            f"there is {num_images} image and neighbors need at least 2; embed more images"
        )
    if num_sampled is not None and num_sampled < 1:
        raise DistillError(f"the number of sampled images is {num_sampled}, it must be 1 or more")
    require_seed(seed)
    require_ks(ks, most=num_images - 1, what="the number of other images")
    images = np.sort(np.random.default_rng(seed).permutation(num_images)[:num_sampled])
    shared = dict.fromkeys(sorted(set(ks)), 0)
    size = rows_per_block(max(teacher.shape[1], student.shape[1]), block_bytes)
    for block in np.split(images, range(size, len(images), size)):
        of_teacher, of_student = (
            nearest_others(rows, block, k=max(ks), block_bytes=block_bytes)
            for rows in (teacher, student)
        )
        for k in shared:
            shared[k] += num_shared(of_teacher[:, :k], of_student[:, :k])
    return {k: count / (k * len(images)) for k, count in shared.items()}
