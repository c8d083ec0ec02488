"""Builds what a training job trains: teacher, objective (CompRess here), optimizer, schedule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from distill import distributed
from distill.config import MethodOptions
from distill.data.views import Batch, TrainingViews, training_loader
from distill.embedding_cache import EmbeddingTable
from distill.engine.checkpoint import Progress
from distill.engine.distillation import Distillation
from distill.engine.loop import Learner
from distill.engine.objective import Objective
from distill.engine.predictor import build_predictor
from distill.engine.resolve import given
from distill.engine.run_directory import RunDirectory
from distill.engine.teacher import CachedTeacher, OnlineTeacher, Rows, Teacher
from distill.jobs.anchors import build_anchors
from distill.jobs.crops import StudentViews, student_views
from distill.jobs.fitting import make_learner, restore
from distill.jobs.imitation import build_imitation
from distill.jobs.prepare import Job
from distill.jobs.teacher_rows import compared_rows
from distill.losses.compress import CompRess
from distill.losses.residual_information import ResidualInformation
from distill.row_exchange import row_counts
from distill.terminal import progress_bar


def build_learner(
    job: Job, run: RunDirectory, embeddings: Sequence[EmbeddingTable]
) -> tuple[Learner, Progress]:
    """Build what is trained, from the newest checkpoint when the run is continued.

    Args:
        job: The prepared job.
        run: Its run directory.
        embeddings: Of each of the teacher's views of the training images; none for a teacher that
            runs at every step.
    """
    objective: Objective
    rows = compared_rows(job, embeddings)
    teacher = _build_teacher(job, rows)
    if job.config.method.method == "compress":
        objective = _build_distillation(job, given(teacher), embeddings, rows)
    else:
        objective = build_imitation(job, run, teacher, embeddings)
    learner = make_learner(job.setting, objective)
    progress = restore(job, run, learner) if job.config.run.resume else None
    prefill = progress is None and job.config.method.queue_init == "prefill"
    if prefill and isinstance(objective, Distillation):
        _prefill(job, objective)
    return learner, progress or Progress()


def training_batches(job: Job, progress: Progress, *, num_epochs: int) -> Iterable[Batch]:
    """Return this rank's batches from where `progress` stands to the end of the last epoch."""
    setting, options = job.setting, job.config.images
    view, *further = _student_views(job).views
    images, seed = setting.images, setting.run.seed
    views = TrainingViews(images.data.train, images.trained, view, further_views=further, seed=seed)
    return training_loader(
        views,
        batch_size=given(setting.optimization.batch_size),
        num_epochs=num_epochs,
        start_epoch=progress.epoch,
        start_batch=progress.batch,
        num_workers=options.num_workers,
        drop_last=setting.drop_last,
        pin_memory=setting.device.type == "cuda",
        shard=(distributed.rank(), distributed.world_size()),
    )


def _student_views(job: Job) -> StudentViews:
    return student_views(job.config, crop_fraction=job.setting.network.input.crop_fraction)


def _build_teacher(job: Job, rows: Sequence[Rows]) -> Teacher | None:
    if job.teacher is None:
        return None
    if not rows:
        return OnlineTeacher(
            job.teacher,
            job.setting.device,
            precision=job.setting.evaluator.precision,
            batch_size=job.config.networks.teacher_batch_size,
        )
    job.teacher.to("meta")  # its weights are not needed any more, and may be gigabytes
    return CachedTeacher(rows, job.setting.device)


def _build_distillation(
    job: Job, teacher: Teacher, embeddings: Sequence[EmbeddingTable], rows: Sequence[Rows]
) -> Distillation:
    method, width = job.config.method, job.config.method.projection_dim
    student_dim = width or job.setting.network.embedding_dim
    compress = CompRess(
        build_anchors(job, teacher.embedding_dim, student_dim, embeddings, rows),
        teacher_temperature=given(method.temperature),
        student_temperature=given(method.student_temperature),
        mask_self=method.mask_self,
        implementation=method.loss_implementation,
    )
    return Distillation(
        job.setting.network,
        teacher,
        compress,
        projection=build_predictor(
            method.predictor, job.setting.network.embedding_dim, given(width)
        ),
        momentum=method.momentum,
        view_sizes=_student_views(job).sizes,
        compression=_compression(method),
        regression_share=given(method.regression_share),
        device=job.setting.device,
        precision=job.setting.evaluator.precision,
    )


def _compression(method: MethodOptions) -> ResidualInformation | None:
    if not method.compression_beta:
        return None
    kappas = (given(method.kappa_e), given(method.kappa_b))
    return ResidualInformation(method.compression_beta, *kappas)


def _prefill(job: Job, objective: Distillation) -> None:
    """Enqueue views of an epoch that training never reaches, until the queue is full."""
    beyond = given(job.config.optimization.epochs)
    objective.train_mode()
    with progress_bar(objective.compress.queue.size, description="prefill the queue") as bar:
        for batch in training_batches(job, Progress(epoch=beyond), num_epochs=beyond + 1):
            job.setting.images.bad_images(batch.bad)
            counts = row_counts(len(batch.index))
            bar.update(sum(counts))
            if objective.accepts(counts) and objective.fill(batch):
                break
