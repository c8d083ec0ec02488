"""The views of an image that a student sees in a step, and which students can see them.

Checks a training job against its data and networks, and fills in what follows the data.

Everything that can be refused is refused here, before anything is written.

Scales a student's random layers by what they say of training images (--student-init).

Builds the anchors of a training job: a queue of recent images, or a slot for every image.

The teacher's embeddings as a method compares them: as they are kept, or less their mean.

Joins the options of training with the baselines of `distill.losses`.

Builds what a training job trains: teacher, objective (CompRess here), optimizer, schedule.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from distill import distributed
from distill.config import METHODS, MethodOptions, TrainConfig
from distill.data.loader import Batch, TrainingViews, evaluation_loader, training_loader
from distill.data.sources import ImageData, TrainingImages, default_augmentation, training_images
from distill.data.views import View, evaluation_view, small_view, training_view
from distill.device import pick_precision, require_memory
from distill.distributed import row_counts
from distill.embeddings.cache import load_teacher_of
from distill.embeddings.store import EmbeddingTable
from distill.errors import DistillError
from distill.evaluation.kmeans import kmeans, nearest_centroids
from distill.kernels import fused
from distill.kernels.anchor_kl import check_implementation
from distill.losses.anchors import AnchorMemory, AnchorQueue, Shard
from distill.losses.base import DistillationLoss
from distill.losses.cc import CC, CCReleased
from distill.losses.clusterfit import ClusterFit
from distill.losses.compress import CompRess
from distill.losses.crd import CRD
from distill.losses.dataset_anchors import DatasetAnchors
from distill.losses.reg import Reg
from distill.losses.reg_bn import RegBN
from distill.losses.residual_information import ResidualInformation
from distill.losses.rkd import RKD
from distill.losses.seed import SEED
from distill.losses.simreg import SimReg
from distill.losses.sp import SP
from distill.losses.supervised import Supervised
from distill.models.networks import EmbeddingNetwork, prepare_for_device
from distill.run_directory import RunDirectory
from distill.terminal import progress_bar
from distill.training.checkpoints import Progress, checkpoints
from distill.training.configuration import (
    check,
    require_resolved,
    require_same_run,
    resolve,
    resolve_images,
)
from distill.training.distillation import Distillation, build_predictor
from distill.training.fitting import make_learner, restore
from distill.training.imitation import Imitation
from distill.training.initialization import has_normalization, scale_layers
from distill.training.loop import Method, TrainState
from distill.training.setting import (
    TrainingSetting,
    data_facts,
    embedder_of,
    open_data,
    require_room_for_loaders,
)
from distill.training.teacher import (
    CachedTeacher,
    CenteredRows,
    OnlineTeacher,
    Rows,
    Teacher,
    mean_direction,
)
from students.registry import build_student, student_spec

logger = logging.getLogger(__name__)


class StudentViews(NamedTuple):
    """What makes each view, and the side of each in pixels; the first is the main one."""

    views: list[View]
    sizes: list[int]


def student_views(config: TrainConfig, *, crop_fraction: float) -> StudentViews:
    """Return the views that a resolved configuration asks for: crops, then small crops.

    Args:
        config: Resolved.
        crop_fraction: Of the student, see `training_view`.
    """
    options, size = config.views, require_resolved(config.images.image_size)
    crop = training_view(
        size,
        require_resolved(options.augmentation),
        min_crop_area=options.min_crop_area,
        crop_fraction=crop_fraction,
    )
    views, sizes = [crop] * options.student_crops, [size] * options.student_crops
    if options.small_crops:
        small = require_resolved(options.small_crop_size)
        views += [small_view(small)] * options.small_crops
        sizes += [small] * options.small_crops
    return StudentViews(views, sizes)


def require_crops(config: TrainConfig, student: EmbeddingNetwork) -> None:
    """Refuse crops that cannot be made, do not differ, or that the student cannot take.

    Args:
        config: Resolved.
        student: Of the job.

    Raises:
        DistillError: An area without crops, equal views, or small crops that are too large or too
            small.
    """
    options, size = config.views, require_resolved(config.images.image_size)
    area = options.min_crop_area
    if area is not None and options.augmentation == "none":
        raise DistillError(
            f"--min-crop-area {area:g} goes with crops, and --augmentation none makes none; leave "
            "one out"
        )
    if options.student_crops > 1 and options.augmentation == "none":
        raise DistillError(
            f"--augmentation none makes all --student-crops {options.student_crops} of an image "
            "equal; use crop-flip or crop, or --student-crops 1"
        )
    if not options.small_crops:
        return
    if options.augmentation != "crop-flip":
        raise DistillError(
            f"--small-crops {options.small_crops} goes with --augmentation crop-flip, not with "
            f"{options.augmentation}: a small crop of a digit or a sign shows nothing; leave it out"
        )
    small, least = require_resolved(options.small_crop_size), student.spec.min_image_size
    if small > size:
        raise DistillError(
            f"--small-crop-size {small} is above --image-size {size}; use {size} or less"
        )
    if small < least or not _takes(student, small):
        raise DistillError(
            f"{student.spec.name} cannot take small crops of {small} x {small} pixels; use another "
            f"--small-crop-size, from {least} to {size}, or leave out --small-crops"
        )


def _takes(student: EmbeddingNetwork, size: int) -> bool:
    """Return whether the student embeds images of a side as wide as its own."""
    was_training = student.training
    student.eval()
    try:
        with torch.no_grad():
            width = student(torch.zeros(1, 3, size, size)).shape[1]
    except (RuntimeError, AssertionError, ValueError):
        return False
    finally:
        student.train(was_training)
    return width == student.embedding_dim


QUEUE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Job:
    """A resolved configuration with its data and its networks.

    Attributes:
        config: Nothing in it follows the data any more.
        setting: Images, student, device and rhythm.
        teacher: Frozen, on the device; None for a method without one, where none was named.
    """

    config: TrainConfig
    setting: TrainingSetting
    teacher: EmbeddingNetwork | None


def prepare(config: TrainConfig, device: torch.device) -> Job:
    """Check a configuration, open its data and networks and fill in what follows the data.

    Args:
        config: As it was asked for.
        device: Of this process.

    Raises:
        DistillError: Anything that cannot be met; nothing is written.
    """
    check(config)
    check_implementation(
        config.method.loss_implementation, sharded=queue_shard(config.method)[1] > 1
    )
    if config.method.loss_implementation == "triton":
        fused.require(torch.empty(0, dtype=QUEUE_DTYPES[config.method.queue_dtype], device=device))
    spec = student_spec(str(config.networks.student))
    config, data = open_data(config, *_named_after(config))
    images = training_images(data, config.images, seed=config.run.seed)
    _require_labels(config, images)
    facts = data_facts(
        images, augmentation=default_augmentation(data), min_image_size=spec.min_image_size
    )
    config = replace(config, images=resolve_images(config.images, facts))
    teacher, student = _load_teacher(config), _build_student(config, data)
    config = resolve(
        config,
        facts,
        teacher_dim=None if teacher is None else teacher.embedding_dim,
        student_normalizes=has_normalization(student),
        published_projection_dim=spec.published_projection_dim,
    )
    precision = pick_precision(config.run.precision, device)
    config = replace(config, run=replace(config.run, precision=precision))
    if config.run.resume:
        require_same_run(config)
    _require_comparable(config, teacher, student)
    require_crops(config, student)
    _require_enough_images(config, images)
    _require_memory(device, _memory_needed(config, images, teacher, student))
    batch_size = require_resolved(config.optimization.batch_size)
    require_room_for_loaders(
        config.images, batch_size, student_views(config, crop_fraction=1.0).sizes
    )
    setting = TrainingSetting(
        images=images,
        embedder=embedder_of(
            images, device=device, precision=precision, num_workers=config.images.num_workers
        ),
        network=prepare_for_device(student, device),
        optimization=config.optimization,
        run=config.run,
        # A last batch of one image has no batch statistics.
        drop_last=len(images.trained) > batch_size and len(images.trained) % batch_size == 1,
    )
    placed = None if teacher is None else prepare_for_device(teacher, device)
    return Job(config=config, setting=setting, teacher=placed)


def queue_shard(method: MethodOptions) -> Shard:
    """Return which part of the anchors this process holds."""
    if method.queue_sharding == "none":
        return (0, 1)
    return (distributed.rank(), distributed.world_size())


def _named_after(config: TrainConfig) -> list[str]:
    """Return what the default run directory is named after, beside the data."""
    networks, method = config.networks, config.method.method
    names = (None if method == "compress" else method, networks.teacher, networks.student)
    return [name for name in names if name]


def _load_teacher(config: TrainConfig) -> EmbeddingNetwork | None:
    networks = config.networks
    if networks.teacher is None:
        return None
    if networks.teacher_view == "center":
        return load_teacher_of(networks)
    return load_teacher_of(replace(networks, teacher_image_size=config.images.image_size))


def _build_student(config: TrainConfig, data: ImageData) -> EmbeddingNetwork:
    torch.manual_seed(config.run.seed)
    return build_student(
        str(config.networks.student),
        image_size=config.images.image_size,
        crop_fraction=0.875 if data.native_size is None else 1.0,  # small images have no margin
        weights=config.networks.student_weights,
    )


def _require_labels(config: TrainConfig, images: TrainingImages) -> None:
    """Refuse to learn from labels that are not there."""
    if config.method.method != "supervised":
        return
    labels, train = images.data.train.labels, images.data.train
    num_missing = len(images.trained) if labels is None else (labels[images.trained] < 0).sum()
    if num_missing:
        raise DistillError(
            f"--method supervised learns from labels, and {num_missing} of the "
            f"{len(images.trained)} images of {train.name} have none; put every image into a "
            "folder of its class under train/, or choose a method that needs none"
        )


def _require_comparable(
    config: TrainConfig, teacher: EmbeddingNetwork | None, student: EmbeddingNetwork
) -> None:
    """Refuse one queue for embeddings of different widths."""
    if config.method.method != "compress" or config.method.variant != "one-queue":
        return
    assert teacher is not None
    student_dim = config.method.projection_dim or student.embedding_dim
    if student_dim != teacher.embedding_dim:
        raise DistillError(
            f"--variant one-queue compares the student with the teacher's anchors, which are "
            f"{teacher.embedding_dim} wide, and the student's embedding is {student_dim} wide; "
            "leave out --projection-dim and --predictor, or use --variant two-queue-momentum"
        )


def _require_enough_images(config: TrainConfig, images: TrainingImages) -> None:
    number, num_images = config.baseline.num_clusters, len(images.trained)
    if number is not None and number > num_images:
        raise DistillError(
            f"--num-clusters is {number}, it must be at most the number of images that are "
            f"trained on, {num_images}"
        )


class _Needed(NamedTuple):
    """Memory that a method takes for what it remembers, in words for people.

    In every process on its device or, `once`, in the first one's memory for a time.
    """

    num_bytes: int
    what: str
    remedy: str
    once: bool = False


def _memory_needed(
    config: TrainConfig,
    images: TrainingImages,
    teacher: EmbeddingNetwork | None,
    student: EmbeddingNetwork,
) -> _Needed | None:
    """Return what the method remembers; None for nothing to speak of."""
    method = config.method
    if method.method == "crd":
        number = len(images.trained)
        num_bytes = 2 * number * require_resolved(config.baseline.head_dim) * torch.float32.itemsize
        return _Needed(num_bytes, f"memories of {number:,} images", "lower --head-dim")
    if teacher is None:
        return None
    if method.method == "clusterfit":
        number = len(images.trained)
        # As read, normalized, and once more in k-means.
        num_bytes = 3 * number * teacher.embedding_dim * torch.float32.itemsize
        remedy = "use fewer images or a teacher with narrower embeddings"
        return _Needed(num_bytes, f"clustering {number:,} embeddings", remedy, once=True)
    of_all = method.anchors == "dataset"
    num_anchors = len(images.trained) if of_all else method.queue_size
    if num_anchors is None:
        return None
    has_two = method.method == "compress" and method.variant != "one-queue"
    num_bytes = AnchorQueue.required_bytes(
        num_anchors,
        teacher.embedding_dim,
        (method.projection_dim or student.embedding_dim) if has_two else None,
        QUEUE_DTYPES[method.queue_dtype],
        num_shards=queue_shard(method)[1] if method.method == "compress" else 1,
    )
    remedy = (
        f"{'use --anchors queue' if of_all else 'lower --queue-size'} or use --queue-dtype bf16"
    )
    return _Needed(
        num_bytes, f"a {'bank' if of_all else 'queue'} of {num_anchors:,} anchors", remedy
    )


def _require_memory(device: torch.device, needed: _Needed | None) -> None:
    if needed is None:
        return
    if needed.once:
        require_memory(
            needed.num_bytes, torch.device("cpu"), what=needed.what, remedy=needed.remedy
        )
        return
    here = distributed.num_local_ranks()  # they share the memory of the machine
    of_processes = "" if here == 1 else f" in {here} processes"
    require_memory(
        needed.num_bytes * (here if device.type == "cpu" else 1),
        device,
        what=f"{needed.what}{of_processes}",
        remedy=needed.remedy,
    )


_NUM_IMAGES = 256


def initialize_student(setting: TrainingSetting) -> None:
    """Scale the student's layers over training images chosen by the seed.

    Every process of a job does the same.

    Args:
        setting: Of the job; its network's weights are changed.
    """
    network, images = setting.network, setting.images
    order = np.random.default_rng(setting.run.seed).permutation(images.trained)
    view = evaluation_view(network.input.image_size, crop_fraction=network.input.crop_fraction)
    loader = evaluation_loader(
        images.data.train, view, indices=order[:_NUM_IMAGES], batch_size=_NUM_IMAGES, num_workers=0
    )
    batch = next(iter(loader))
    images.bad_images(batch.bad)
    number = scale_layers(network, batch.view.to(setting.device))
    logger.info(f"{number} layers of the student are scaled over {len(batch.view)} images")


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
        require_resolved(method.queue_size),
        *widths,
        init="random" if method.queue_init == "random" else "empty",
        seed=job.config.run.seed,
        **options,
    )


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
    return [CenteredRows(view, mean) for view in embeddings]


_FAISS_SEEDS = 2**31


def build_imitation(
    job: Job, run: RunDirectory, teacher: Teacher | None, embeddings: Sequence[EmbeddingTable]
) -> Imitation:
    """Build the objective of a baseline, with random heads (torch's global seed).

    Args:
        job: The prepared job, of another method than compress.
        run: Its run directory.
        teacher: Of the job, None without one.
        embeddings: Of each of the teacher's views of the training images, where they are kept.
    """
    method, student_dim = job.config.method.method, job.setting.network.embedding_dim
    if method == "clusterfit":
        loss: DistillationLoss = _clusterfit(job, run, embeddings)
    elif method == "supervised":
        loss = Supervised(student_dim, _num_classes(job))
    else:
        loss = _BUILD[method](job, require_resolved(teacher).embedding_dim, student_dim)
    return Imitation(
        job.setting.network,
        teacher if METHODS.get(method).teacher == "every step" else None,
        loss,
        weight=require_resolved(job.config.baseline.loss_weight),
        device=job.setting.device,
        precision=job.setting.embedder.precision,
    )


def _cc_released(job: Job, teacher_dim: int, student_dim: int) -> CCReleased:
    return CCReleased(
        teacher_dim, student_dim, head_dim=require_resolved(job.config.baseline.head_dim)
    )


def _crd(job: Job, teacher_dim: int, student_dim: int) -> CRD:
    options = job.config.baseline
    return CRD(
        teacher_dim,
        student_dim,
        torch.from_numpy(job.setting.images.trained),
        head_dim=require_resolved(options.head_dim),
        num_negatives=require_resolved(options.num_negatives),
        temperature=require_resolved(job.config.method.temperature),
        momentum=require_resolved(options.memory_momentum),
        seed=job.config.run.seed,
    )


def _rkd(job: Job, teacher_dim: int, student_dim: int) -> RKD:
    options = job.config.baseline
    return RKD(
        distance_weight=require_resolved(options.distance_weight),
        angle_weight=require_resolved(options.angle_weight),
    )


def _seed(job: Job, teacher_dim: int, student_dim: int) -> SEED:
    options = job.config.method
    queue = AnchorQueue(
        require_resolved(options.queue_size),
        teacher_dim,
        dtype=QUEUE_DTYPES[options.queue_dtype],
        device=job.setting.device,
    )
    return SEED(
        queue,
        teacher_dim=teacher_dim,
        student_dim=student_dim,
        teacher_temperature=require_resolved(options.temperature),
        student_temperature=require_resolved(options.student_temperature),
        mask_self=options.mask_self,
    )


_BUILD: dict[str, Callable[[Job, int, int], DistillationLoss]] = {
    "reg": lambda job, teacher_dim, student_dim: Reg(teacher_dim, student_dim),
    "reg-bn": lambda job, teacher_dim, student_dim: RegBN(teacher_dim, student_dim),
    "simreg": lambda job, teacher_dim, student_dim: SimReg(teacher_dim, student_dim),
    "cc": lambda job, teacher_dim, student_dim: CC(),
    "cc-released": _cc_released,
    "crd": _crd,
    "rkd": _rkd,
    "sp": lambda job, teacher_dim, student_dim: SP(),
    "seed": _seed,
}


def _num_classes(job: Job) -> int:
    labels = job.setting.images.data.train.labels
    assert labels is not None, "prepare refuses images without labels"
    return int(labels.max()) + 1


def _clusterfit(job: Job, run: RunDirectory, embeddings: Sequence[EmbeddingTable]) -> ClusterFit:
    """Cluster what the teacher made of the images, unless a checkpoint holds the clusters."""
    cluster = torch.full((len(job.setting.images.data.train),), -1)
    is_kept = job.config.run.resume and bool(checkpoints(run.checkpoints))
    if not is_kept:
        trained = embedded_images(job, embeddings)
        cluster[trained] = torch.from_numpy(
            distributed.broadcast_from_rank0(lambda: _clusters(job, embeddings[0], trained))
        )
    return ClusterFit(
        job.setting.network.embedding_dim,
        cluster,
        num_clusters=require_resolved(job.config.baseline.num_clusters),
    )


def _clusters(job: Job, table: EmbeddingTable, trained: np.ndarray) -> np.ndarray:
    """Return the cluster of every image of `trained`, int64."""
    number = require_resolved(job.config.baseline.num_clusters)
    logger.info(f"clustering {len(trained):,} embeddings of the teacher into {number:,} clusters")
    features = table.rows(trained).numpy()
    # One start: ten, as evaluation makes, would take ten times as long with 16,000 clusters.
    centroids = kmeans(features, number, seed=job.config.run.seed % _FAISS_SEEDS, restarts=1)
    return nearest_centroids(features, centroids)


def build_learner(
    job: Job, run: RunDirectory, embeddings: Sequence[EmbeddingTable]
) -> tuple[TrainState, Progress]:
    """Build what is trained, from the newest checkpoint when the run is continued.

    Args:
        job: The prepared job.
        run: Its run directory.
        embeddings: Of each of the teacher's views of the training images; none for a teacher that
            runs at every step.
    """
    objective: Method
    rows = compared_rows(job, embeddings)
    teacher = _build_teacher(job, rows)
    if job.config.method.method == "compress":
        objective = _build_distillation(job, require_resolved(teacher), embeddings, rows)
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
        batch_size=require_resolved(setting.optimization.batch_size),
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
            precision=job.setting.embedder.precision,
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
        teacher_temperature=require_resolved(method.temperature),
        student_temperature=require_resolved(method.student_temperature),
        mask_self=method.mask_self,
        implementation=method.loss_implementation,
    )
    return Distillation(
        job.setting.network,
        teacher,
        compress,
        projection=build_predictor(
            method.predictor, job.setting.network.embedding_dim, require_resolved(width)
        ),
        momentum=method.momentum,
        view_sizes=_student_views(job).sizes,
        compression=_compression(method),
        regression_share=require_resolved(method.regression_share),
        device=job.setting.device,
        precision=job.setting.embedder.precision,
    )


def _compression(method: MethodOptions) -> ResidualInformation | None:
    if not method.compression_beta:
        return None
    kappas = (require_resolved(method.kappa_e), require_resolved(method.kappa_b))
    return ResidualInformation(method.compression_beta, *kappas)


def _prefill(job: Job, objective: Distillation) -> None:
    """Enqueue views of an epoch that training never reaches, until the queue is full."""
    beyond = require_resolved(job.config.optimization.epochs)
    objective.train_mode()
    with progress_bar(objective.compress.queue.size, description="prefill the queue") as bar:
        for batch in training_batches(job, Progress(epoch=beyond), num_epochs=beyond + 1):
            job.setting.images.bad_images(batch.bad)
            counts = row_counts(len(batch.index))
            bar.update(sum(counts))
            if objective.accepts(counts) and objective.fill(batch):
                break
