"""The teacher's and the untrained student's numbers, which a run is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from distill import distributed
from distill.embedding_cache import EmbeddingTable
from distill.engine.device import require_memory
from distill.engine.run_directory import RunDirectory, read_metrics
from distill.errors import DistillError
from distill.evaluation.stored import stored
from distill.jobs.evaluator import EmbeddedSplits, Evaluator
from distill.jobs.network_cache import NetworkCache
from distill.jobs.prepare import Job
from distill.terminal import say

_COPIES = 3  # the embeddings, normalized, and once more in the index


@dataclass(frozen=True)
class TeacherEmbeddings:
    """What the teacher made of its own views of the images.

    Attributes:
        views: Of the training images, a table for each view.
        val: Of the validation images; None when the teacher is not to be measured.
    """

    views: list[EmbeddingTable]
    val: EmbeddingTable | None


def teacher_embeddings(job: Job, run: RunDirectory) -> TeacherEmbeddings | None:
    """Return the teacher's embeddings, made where they are missing; all ranks call it together.

    Returns:
        None for a teacher that runs at every step, and without a teacher.

    Raises:
        DistillError: See `NetworkCache.embeddings`.
    """
    networks = job.config.networks
    if job.teacher is None or networks.teacher_view == "student":
        return None
    cache = NetworkCache(
        network=job.teacher,
        what="teacher",
        evaluator=_evaluator(job),
        bad_images=job.setting.images.bad_images,
        folder=networks.teacher_cache,
        dtype=networks.cache_dtype,
        seed=job.config.run.seed,
    )
    views = [
        cache.embeddings("train", view=number).table for number in range(networks.num_teacher_views)
    ]
    # The first rank decides: it alone reads and writes metrics.json.
    why_not = job.setting.evaluator.why_not()
    is_asked = why_not is None and job.config.run.measure == "all"
    wanted = distributed.from_main(lambda: is_asked and not _is_measured(run))
    return TeacherEmbeddings(views, cache.embeddings("val").table if wanted else None)


def measure_before(job: Job, run: RunDirectory, embeddings: TeacherEmbeddings | None) -> None:
    """Measure the teacher and the untrained student as asked, unless metrics.json has them.

    Args:
        job: The prepared job.
        run: Its run directory.
        embeddings: The teacher's, where they are kept.
    """
    if job.config.run.measure == "none":
        return
    of_student = job.setting.evaluator
    why_not = of_student.why_not()
    if why_not is not None:
        say(f"nearest neighbour and cluster alignment are skipped: {why_not}")
        return
    if _is_measured(run) or job.config.run.measure == "trained":
        return
    splits = _teacher_splits(job, embeddings)
    if splits is not None:
        _keep(run, splits, prefix="teacher_", what="teacher")
    what = "untrained student"
    splits = of_student.embed_both(job.setting.network, what=what)
    _keep(run, splits, prefix="untrained_", what=what)


def _is_measured(run: RunDirectory) -> bool:
    return "untrained_nn_accuracy" in read_metrics(run.path)


def _keep(run: RunDirectory, splits: EmbeddedSplits, *, prefix: str, what: str) -> None:
    found = splits.measure()
    run.add_metrics({prefix + name: value for name, value in found.items()})
    say(f"{what}: nearest neighbour {found['nn_accuracy']:.4f}")


def _teacher_splits(job: Job, embeddings: TeacherEmbeddings | None) -> EmbeddedSplits | None:
    """Return the teacher's embeddings in memory; None without one, or when they do not fit."""
    if job.teacher is None:
        return None
    evaluator = _evaluator(job)
    if embeddings is None:
        return evaluator.embed_both(job.teacher, what="teacher")
    data = evaluator.data
    assert embeddings.val is not None
    assert data.val is not None
    num_images = len(evaluator.train_index) + len(evaluator.val_index)
    try:
        require_memory(
            _COPIES * num_images * job.teacher.embedding_dim * 4,
            torch.device("cpu"),
            what=f"looking up {num_images:,} embeddings",
            remedy="training goes on without its numbers",
        )
    except DistillError as error:
        say(f"the teacher is not measured: {error}")
        return None
    return EmbeddedSplits(
        stored(embeddings.views[0], data.train, evaluator.train_index).in_memory(),
        stored(embeddings.val, data.val, evaluator.val_index).in_memory(),
    )


def _evaluator(job: Job) -> Evaluator:
    return replace(job.setting.evaluator, batch_size=job.config.networks.teacher_batch_size)
