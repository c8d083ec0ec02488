"""The teacher's embeddings as a method compares them: as they are kept, or less their mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.embedding_cache import EmbeddingTable
from distill.engine.centred_rows import CentredRows, mean_direction
from distill.engine.teacher import Rows
from distill.jobs.prepare import Job


def embedded_images(job: Job, embeddings: Sequence[EmbeddingTable]) -> np.ndarray:
    """Return the indices int64 of the images that are trained on and have an embedding.

    What could not be read when it was embedded is never in a batch either.
    """
    return np.setdiff1d(job.setting.images.trained, embeddings[0].bad)


def compared_rows(job: Job, embeddings: Sequence[EmbeddingTable]) -> Sequence[Rows]:
    """Return what the student is compared by, for each of the teacher's views.

    Args:
        job: The prepared job.
        embeddings: Of each of the teacher's views of the training images; none for a teacher that
            runs at every step. The mean is the first one's, so that all views lie in one space.
    """
    if not embeddings or job.config.method.teacher_mean != "subtract":
        return embeddings
    images = embedded_images(job, embeddings)
    mean = mean_direction(embeddings[0], images, seed=job.config.run.seed)
    return [CentredRows(view, mean) for view in embeddings]
