"""Trains a student and measures it: teacher's embeddings, loss, loop, evaluation, in this order.

Under several ranks each embeds its part of the images with the teacher, and all look the embeddings
up in the same files; the first rank measures while the others wait.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from distill import distributed
from distill.data.loader import evaluation_loader
from distill.data.views import evaluation_view
from distill.device import require_memory
from distill.distributed import row_counts
from distill.embeddings.cache import NetworkCache, stored
from distill.embeddings.embed import DatasetEmbedder, Embeddings
from distill.embeddings.store import EmbeddingTable
from distill.errors import DistillError
from distill.evaluation.standard import standard_metrics
from distill.losses import METHODS
from distill.models.weights import save_network
from distill.run_directory import RunDirectory, read_metrics
from distill.terminal import progress_bar
from distill.training.checkpoints import Progress, checkpoints
from distill.training.configuration import TrainConfig
from distill.training.distillation import Distillation
from distill.training.initialization import scale_layers
from distill.training.objects import NO_OBJECTS, RunObjects
from distill.training.run import (
    RunResult,
    add_metrics,
    build_state,
    fit_run,
    measure,
    restore,
    run_job,
    training_metrics,
    write_config,
)
from distill.training.setup import DistillationSetup, millions, prepare
from distill.training.teacher import CachedTeacher, OnlineTeacher, Teacher

logger = logging.getLogger(__name__)

_NUM_IMAGES = 256  # that a student's layers are scaled over
_COPIES = 3  # the embeddings, normalized, and once more in the index


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


def _run(setup: DistillationSetup, run: RunDirectory) -> str | None:
    _announce(setup, run)
    # Before the configuration: what cannot be kept ends the run while there is none to resume.
    embeddings = teacher_embeddings(setup, run)
    write_config(setup, run, command="train")
    if distributed.is_main():
        measure_before(setup, run, embeddings)
    if setup.config.networks.student_init == "scaled":
        initialize_student(setup)
    objective = build_distillation(setup, run, None if embeddings is None else embeddings.train)
    state = build_state(setup, objective)
    progress = restore(setup, run, state)
    if progress is None and objective.criterion.wants_prefill:
        _prefill(setup, objective)
    progress = progress or Progress()
    stopped_by = fit_run(setup, run, state, progress)
    if stopped_by is None and distributed.is_main():
        save_network(setup.network, run.student)
        add_metrics(setup, run, training_metrics(setup, progress))
        if setup.config.run.measure != "none":
            measure(setup, run, prefix="", what="student")
    return stopped_by


def _announce(setup: DistillationSetup, run: RunDirectory) -> None:
    networks, method, teacher = setup.config.networks, setup.config.method.method, setup.teacher
    words = "" if method == "compress" else f"{method}: "
    if teacher is not None:
        words += (
            f"teacher {networks.teacher} ({millions(teacher)} parameters, "
            f"{teacher.embedding_dim}-d) -> "
        )
    logger.info(
        f"{words}student {networks.student} ({millions(setup.network)}, "
        f"{setup.network.embedding_dim}-d), {setup.describe()}; run directory {run.path}"
    )


@dataclass(frozen=True)
class TeacherEmbeddings:
    """What the teacher made of its own view of the images.

    Attributes:
        train: Of the training images.
        val: Of the validation images; None when the teacher is not to be measured.
    """

    train: EmbeddingTable
    val: EmbeddingTable | None


def teacher_embeddings(setup: DistillationSetup, run: RunDirectory) -> TeacherEmbeddings | None:
    """Return the teacher's embeddings, made where they are missing; all ranks call it together.

    Returns:
        None for a teacher that runs at every step, and without a teacher.

    Raises:
        DistillError: See `NetworkCache.embeddings`.
    """
    networks = setup.config.networks
    if setup.teacher is None or networks.teacher_view == "student":
        return None
    cache = NetworkCache(
        network=setup.teacher,
        what="teacher",
        embedder=_teacher_embedder(setup),
        bad_images=setup.images.bad_images,
        folder=networks.teacher_cache,
        dtype=networks.cache_dtype,
    )
    train = cache.embeddings("train").table
    # The first rank decides: it alone reads and writes metrics.json.
    is_asked = setup.config.run.measure == "all" and setup.embedder.unavailable_reason() is None
    wanted = distributed.broadcast_from_rank0(lambda: is_asked and not _is_measured(run))
    return TeacherEmbeddings(train, cache.embeddings("val").table if wanted else None)


def measure_before(
    setup: DistillationSetup, run: RunDirectory, embeddings: TeacherEmbeddings | None
) -> None:
    """Measure the teacher and the untrained student as asked, unless metrics.json has them.

    Args:
        setup: Of the run.
        run: Its directory.
        embeddings: The teacher's, where they are kept.
    """
    asked = setup.config.run.measure
    unavailable_reason = setup.embedder.unavailable_reason()
    if unavailable_reason is not None and asked != "none":
        logger.info(f"nearest neighbor and cluster alignment are skipped: {unavailable_reason}")
    if unavailable_reason is not None or asked != "all" or _is_measured(run):
        return
    splits = _teacher_splits(setup, embeddings)
    if splits is not None:
        metrics = standard_metrics(*splits)
        add_metrics(setup, run, {f"teacher_{name}": value for name, value in metrics.items()})
        logger.info(f"teacher: nearest neighbor {metrics['nn_accuracy']:.4f}")
    measure(setup, run, prefix="untrained_", what="untrained student")
    untrained = read_metrics(run.path)["untrained_nn_accuracy"]
    logger.info(f"untrained student: nearest neighbor {untrained:.4f}")


def _is_measured(run: RunDirectory) -> bool:
    return "untrained_nn_accuracy" in read_metrics(run.path)


def _teacher_splits(
    setup: DistillationSetup, embeddings: TeacherEmbeddings | None
) -> tuple[Embeddings, Embeddings] | None:
    """Return the teacher's embeddings in memory; None without one, or when they do not fit."""
    if setup.teacher is None:
        return None
    embedder = _teacher_embedder(setup)
    if embeddings is None:
        return embedder.embed_both(setup.teacher, what="teacher")
    data = embedder.data
    assert embeddings.val is not None
    assert data.val is not None
    num_images = len(embedder.train_index) + len(embedder.val_index)
    try:
        require_memory(
            _COPIES * num_images * setup.teacher.embedding_dim * 4,
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


def _teacher_embedder(setup: DistillationSetup) -> DatasetEmbedder:
    return replace(setup.embedder, batch_size=setup.config.networks.teacher_batch_size)


def initialize_student(setup: DistillationSetup) -> None:
    """Scale the student's layers over training images chosen by the seed (--student-init).

    Every process of a run does the same.
    """
    network, images = setup.network, setup.images
    order = np.random.default_rng(setup.config.run.seed).permutation(images.trained)
    view = evaluation_view(network.input.image_size, crop_fraction=network.input.crop_fraction)
    loader = evaluation_loader(
        images.data.train, view, indices=order[:_NUM_IMAGES], batch_size=_NUM_IMAGES, num_workers=0
    )
    batch = next(iter(loader))
    images.bad_images(batch.bad)
    number = scale_layers(network, batch.view.to(setup.device))
    logger.info(f"{number} layers of the student are scaled over {len(batch.view)} images")


def build_distillation(
    setup: DistillationSetup, run: RunDirectory, embeddings: EmbeddingTable | None
) -> Distillation:
    """Build the objective, its random layers from torch's global generator.

    Args:
        setup: Of the run.
        run: Its directory.
        embeddings: Of the teacher's view of the training images; None for a teacher that runs at
            every step.
    """
    config = setup.config
    is_resumed = config.run.resume and bool(checkpoints(run.checkpoints))
    context = replace(setup.context, is_resumed=is_resumed, teacher_rows=embeddings)
    if embeddings is not None:
        # What could not be read when it was embedded is never in a batch either.
        context = replace(context, images=np.setdiff1d(setup.images.trained, embeddings.bad))
    method = METHODS.get(config.method.method)
    return Distillation(
        setup.network,
        _build_teacher(setup, embeddings) if method.teacher == "every step" else None,
        method.build(config.loss, context),
        weight=getattr(config.loss, "loss_weight", 1.0),
        num_views=config.views.student_crops,
        device=setup.device,
        precision=setup.embedder.precision,
    )


def _build_teacher(setup: DistillationSetup, embeddings: EmbeddingTable | None) -> Teacher:
    assert setup.teacher is not None
    if embeddings is None:
        return OnlineTeacher(
            setup.teacher,
            setup.device,
            precision=setup.embedder.precision,
            batch_size=setup.config.networks.teacher_batch_size,
        )
    setup.teacher.to("meta")  # its weights are not needed any more, and may be gigabytes
    return CachedTeacher(embeddings, setup.device)


def _prefill(setup: DistillationSetup, objective: Distillation) -> None:
    """Give the loss images of an epoch that training never reaches, until its memory is full."""
    beyond = setup.num_epochs
    objective.train_mode()
    with progress_bar(len(setup.images.trained), description="prefill the queue") as bar:
        for batch in setup.batches(Progress(epoch=beyond), num_epochs=beyond + 1):
            setup.images.bad_images(batch.bad)
            counts = row_counts(len(batch.index))
            bar.update(sum(counts))
            if objective.accepts(counts) and objective.fill(batch):
                break
