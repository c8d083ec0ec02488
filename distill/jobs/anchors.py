"""Builds the anchors of a training job: a queue of recent images, or a slot for every image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill.anchors import AnchorMemory, AnchorQueue, DatasetAnchors
from distill.embedding_cache import EmbeddingTable
from distill.engine.resolve import given
from distill.engine.teacher import Rows
from distill.jobs.prepare import QUEUE_DTYPES, Job, queue_shard
from distill.jobs.teacher_rows import embedded_images


def build_anchors(
    job: Job,
    teacher_dim: int,
    student_dim: int,
    embeddings: Sequence[EmbeddingTable],
    rows: Sequence[Rows],
) -> AnchorMemory:
    """Return the anchors that the job asks for.

    Args:
        job: The prepared job.
        teacher_dim: Width of the teacher's embeddings.
        student_dim: Width of what the student is compared by.
        embeddings: Of each of the teacher's views of the training images; a queue takes none.
        rows: The same as they are compared.
    """
    method = job.config.method
    widths = (teacher_dim, None if method.variant == "one-queue" else student_dim)
    options: dict[str, Any] = {
        "dtype": QUEUE_DTYPES[method.queue_dtype],
        "device": job.setting.device,
        "shard": queue_shard(method),
    }
    if method.anchors == "dataset":
        images = embedded_images(job, embeddings)
        return DatasetAnchors(images, rows[0].rows, *widths, **options)
    return AnchorQueue(
        given(method.queue_size),
        *widths,
        init="random" if method.queue_init == "random" else "empty",
        seed=job.config.run.seed,
        **options,
    )
