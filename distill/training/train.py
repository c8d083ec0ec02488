"""The teacher's and the untrained student's numbers, which a run is compared with.

Trains a student and measures it: teacher, queue, loop, evaluation, in this order.

Under several ranks each embeds its part of the images with the teacher, and all look the embeddings
up in the same files; the first rank measures while the others wait.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from distill import distributed
from distill.device import require_memory
from distill.embeddings.cache import NetworkCache, stored
from distill.embeddings.embed import DatasetEmbedder, Embeddings
from distill.embeddings.store import EmbeddingTable
from distill.errors import DistillError
from distill.evaluation.standard import standard_metrics
from distill.models.networks import EmbeddingNetwork, num_parameters
from distill.models.weights import save_network
from distill.run_directory import RunDirectory, read_metrics
from distill.training.checkpoints import Progress
from distill.training.configuration import TrainConfig
from distill.training.fitting import (
    RunResult,
    add_metrics,
    fit_run,
    result_of,
    run_job,
    training_metrics,
    write_config,
)
from distill.training.objects import NO_OBJECTS, RunObjects
from distill.training.setting import describe_setting
from distill.training.setup import Job, build_learner, initialize_student, prepare, training_batches

logger = logging.getLogger(__name__)

_COPIES = 3  # the embeddings, normalized, and once more in the index


@dataclass(frozen=True)
class TeacherEmbeddings:
    """What the teacher made of its own view of the images.

    Attributes:
        train: Of the training images.
        val: Of the validation images; None when the teacher is not to be measured.
    """

    train: EmbeddingTable
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
        embedder=_embedder(job),
        bad_images=job.setting.images.bad_images,
        folder=networks.teacher_cache,
        dtype=networks.cache_dtype,
    )
    train = cache.embeddings("train").table
    # The first rank decides: it alone reads and writes metrics.json.
    unavailable_reason = job.setting.embedder.unavailable_reason()
    is_asked = unavailable_reason is None and job.config.run.measure == "all"
    wanted = distributed.broadcast_from_rank0(lambda: is_asked and not _is_measured(run))
    return TeacherEmbeddings(train, cache.embeddings("val").table if wanted else None)


def measure_before(job: Job, run: RunDirectory, embeddings: TeacherEmbeddings | None) -> None:
    """Measure the teacher and the untrained student as asked, unless metrics.json has them.

    Args:
        job: The prepared job.
        run: Its run directory.
        embeddings: The teacher's, where they are kept.
    """
    if job.config.run.measure == "none":
        return
    of_student = job.setting.embedder
    unavailable_reason = of_student.unavailable_reason()
    if unavailable_reason is not None:
        logger.info(f"nearest neighbor and cluster alignment are skipped: {unavailable_reason}")
        return
    if _is_measured(run) or job.config.run.measure == "trained":
        return
    splits = _teacher_splits(job, embeddings)
    if splits is not None:
        _keep(job, run, splits, prefix="teacher_", what="teacher")
    what = "untrained student"
    splits = of_student.embed_both(job.setting.network, what=what)
    _keep(job, run, splits, prefix="untrained_", what=what)


def _is_measured(run: RunDirectory) -> bool:
    return "untrained_nn_accuracy" in read_metrics(run.path)


def _keep(
    job: Job, run: RunDirectory, splits: tuple[Embeddings, Embeddings], *, prefix: str, what: str
) -> None:
    found = standard_metrics(*splits)
    add_metrics(job, run, {prefix + name: value for name, value in found.items()})
    logger.info(f"{what}: nearest neighbor {found['nn_accuracy']:.4f}")


def _teacher_splits(
    job: Job, embeddings: TeacherEmbeddings | None
) -> tuple[Embeddings, Embeddings] | None:
    """Return the teacher's embeddings in memory; None without one, or when they do not fit."""
    if job.teacher is None:
        return None
    embedder = _embedder(job)
    if embeddings is None:
        return embedder.embed_both(job.teacher, what="teacher")
    data = embedder.data
    assert embeddings.val is not None
    assert data.val is not None
    num_images = len(embedder.train_index) + len(embedder.val_index)
    try:
        require_memory(
            _COPIES * num_images * job.teacher.embedding_dim * 4,
            torch.device("cpu"),
            what=f"looking up {num_images:,} embeddings",
            remedy="training goes on without its numbers",
        )
    except DistillError as error:
        logger.info(f"the teacher is not measured: {error}")
        return None
    return (
        stored(embeddings.train, data.train, embedder.train_index).in_memory(),
        stored(embeddings.val, data.val, embedder.val_index).in_memory(),
    )


def _embedder(job: Job) -> DatasetEmbedder:
    return replace(job.setting.embedder, batch_size=job.config.networks.teacher_batch_size)


def train(config: TrainConfig, objects: RunObjects = NO_OBJECTS) -> RunResult:
    """Train a student as `config` says and measure it.

    Args:
        config: As it was asked for.
        objects: Used in place of what `config` names.

    Raises:
        DistillError: Anything about the request that cannot be met; nothing was written then.
        NonFiniteLossError: The loss is not finite; the last checkpoint is intact.
    """
    return run_job(config, partial(prepare, objects=objects), _run)


def _run(job: Job, run: RunDirectory) -> RunResult:
    _announce(job, run.path)
    # Before the configuration: what cannot be kept ends the run while there is none to resume.
    embeddings = teacher_embeddings(job, run)
    write_config(job, run, command="train")
    if distributed.is_main():
        measure_before(job, run, embeddings)
    if job.config.networks.student_init == "scaled":
        initialize_student(job.setting)
    learner, progress = build_learner(job, run, embeddings.train if embeddings else None)
    batches = partial(training_batches, job, num_epochs=job.setting.num_epochs)
    stopped_by = fit_run(job, run, learner, progress, batches)
    if stopped_by is None and distributed.is_main():
        _measure_after(job, run, progress)
    distributed.barrier()
    return result_of(job, run, stopped_by, job.own_module)


def _announce(job: Job, output: Path) -> None:
    networks, setting, method = job.config.networks, job.setting, job.config.method.method
    words = f"student {networks.student} ({_millions(setting.network)} M"
    if job.teacher is not None:
        words = (
            f"teacher {networks.teacher} ({_millions(job.teacher)} M parameters, "
            f"{job.teacher.embedding_dim}-d) -> {words}"
        )
    logger.info(
        f"{'' if method == 'compress' else f'{method}: '}{words}, "
        f"{setting.network.embedding_dim}-d), {describe_setting(setting)}; run directory {output}"
    )


def _millions(network: EmbeddingNetwork) -> str:
    return f"{num_parameters(network) / 1e6:.1f}"


def _measure_after(job: Job, run: RunDirectory, progress: Progress) -> None:
    save_network(job.setting.network, run.student)
    metrics = training_metrics(job.setting, progress)
    embedder = job.setting.embedder
    if embedder.unavailable_reason() is None and job.config.run.measure != "none":
        metrics |= standard_metrics(*embedder.embed_both(job.setting.network, what="student"))
    add_metrics(job, run, metrics)
