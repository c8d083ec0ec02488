"""Makes a configuration a run that is ready to train: its data, networks, loss and optimizer.

Everything that can be refused is refused in `prepare`, before anything is written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from distill import distributed
from distill.config import NetworkOptions
from distill.data.loader import Batch, TrainingViews, evaluation_loader, training_loader
from distill.data.sources import ImageData, TrainingImages, default_augmentation, training_images
from distill.data.views import evaluation_view, training_view
from distill.device import pick_precision, require_memory
from distill.distributed import row_counts
from distill.embeddings.cache import load_teacher_of
from distill.embeddings.store import EmbeddingTable
from distill.errors import DistillError
from distill.evaluation.kmeans import kmeans, nearest_centroids
from distill.losses import METHODS, load_plugins
from distill.losses.base import BuildContext, MemoryNeed
from distill.models.networks import EmbeddingNetwork, is_own_module, prepare_for_device
from distill.models.weights import load_weights
from distill.run_directory import RunDirectory
from distill.terminal import progress_bar
from distill.training.callbacks import Callback
from distill.training.checkpoints import Progress, checkpoints
from distill.training.configuration import (
    TrainConfig,
    check,
    require_resolved,
    require_same_run,
    resolve,
    resolve_images,
)
from distill.training.distillation import Distillation
from distill.training.fitting import make_learner, restore
from distill.training.initialization import has_normalization, scale_layers
from distill.training.loop import TrainState
from distill.training.objects import NO_OBJECTS, RunObjects, as_network
from distill.training.setting import (
    TrainingSetting,
    data_facts,
    embedder_of,
    open_data,
    require_room_for_loaders,
)
from distill.training.teacher import CachedTeacher, OnlineTeacher, Teacher
from students.registry import build_student, student_spec
from teachers.load import freeze

logger = logging.getLogger(__name__)


_NUM_IMAGES = 256  # that a student's layers are scaled over
_FAISS_SEEDS = 2**31


@dataclass(frozen=True)
class Job:
    """A resolved configuration with its data and its networks.

    Attributes:
        config: Nothing in it follows the data any more.
        setting: Images, student, device and rhythm.
        teacher: Frozen, on the device; None for a method without one, where none was named.
        context: What the loss is built from, but the teacher's embeddings.
        callbacks: Of the caller.
        own_module: The student that was given as an object; None for a named one.
    """

    config: TrainConfig
    setting: TrainingSetting
    teacher: EmbeddingNetwork | None
    context: BuildContext
    callbacks: Sequence[Callback] = ()
    own_module: nn.Module | None = None


def prepare(config: TrainConfig, device: torch.device, objects: RunObjects = NO_OBJECTS) -> Job:
    """Check a configuration, open its data and networks and fill in what follows the data.

    Args:
        config: As it was asked for.
        device: Of this process.
        objects: Used in place of what `config` names.

    Raises:
        DistillError: Anything that cannot be met; nothing is written.
    """
    load_plugins(config.method.plugin)
    check(config)
    _require_objects(config.networks, objects)
    config, data = open_data(config, *_named_after(config), given=objects.data)
    if isinstance(objects.student, EmbeddingNetwork) and config.images.image_size is None:
        side = objects.student.input.image_size
        config = replace(config, images=replace(config.images, image_size=side))
    spec = None if objects.student else student_spec(str(config.networks.student))
    images = training_images(data, config.images, seed=config.run.seed)
    facts = data_facts(
        images,
        augmentation=default_augmentation(data),
        min_image_size=spec.min_image_size if spec else 1,
    )
    config = replace(config, images=resolve_images(config.images, facts))
    teacher, student = _load_teacher(config, objects), _build_student(config, data, objects)
    config = resolve(
        config,
        facts,
        teacher_dim=0 if teacher is None else teacher.embedding_dim,
        student_normalizes=has_normalization(student),
        published_projection_dim=spec.published_projection_dim if spec else None,
    )
    precision = pick_precision(config.run.precision, device)
    config = replace(config, run=replace(config.run, precision=precision))
    if config.run.resume:
        require_same_run(config)
    _require_different_views(config)
    loss, context = (
        METHODS.get(config.method.method),
        _context(config, images, teacher, student, device),
    )
    loss.require_possible(config.loss, context)
    _require_memory(device, loss.memory_needed(config.loss, context))
    batch_size = require_resolved(config.optimization.batch_size)
    sizes = [require_resolved(config.images.image_size)] * config.views.student_crops
    require_room_for_loaders(config.images, batch_size, sizes)
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
    return Job(config, setting, placed, context, objects.callbacks, objects.student)


def _context(
    config: TrainConfig,
    images: TrainingImages,
    teacher: EmbeddingNetwork | None,
    student: EmbeddingNetwork,
    device: torch.device,
) -> BuildContext:
    labels, seed = images.data.train.labels, config.run.seed

    def cluster(rows: np.ndarray, number: int) -> np.ndarray:
        # One start: ten, as evaluation makes, would take ten times as long with 16,000 clusters.
        centroids = kmeans(rows, number, seed=seed % _FAISS_SEEDS, restarts=1)
        return nearest_centroids(rows, centroids)

    return BuildContext(
        student_dim=student.embedding_dim,
        teacher_dim=0 if teacher is None else teacher.embedding_dim,
        images=images.trained,
        num_positions=len(images.data.train),
        num_classes=0 if labels is None else int(labels.max()) + 1,
        num_unlabeled=len(images.trained)
        if labels is None
        else int((labels[images.trained] < 0).sum()),
        data_name=images.data.train.name,
        device=device,
        seed=seed,
        rank=distributed.rank(),
        num_ranks=distributed.world_size(),
        kmeans=cluster,
    )


def _named_after(config: TrainConfig) -> list[str]:
    """Return what the default run directory is named after, beside the data."""
    networks, method = config.networks, config.method.method
    names = (None if method == "compress" else method, networks.teacher, networks.student)
    return [name for name in names if name]


def _require_objects(networks: NetworkOptions, objects: RunObjects) -> None:
    """Refuse a module that only its program can bring, and weights for a teacher that is given."""
    for role in ("teacher", "student"):
        name = getattr(networks, role)
        if getattr(objects, role) is None and is_own_module(name or ""):
            raise DistillError(
                f"the {role} {name} is a module of a program's own, which a name does not build; "
                f"go on in Python with distill.train({role}=module, output=..., resume=True)"
            )
    if objects.teacher is not None and networks.teacher_weights is not None:
        raise DistillError(
            f"--teacher-weights {networks.teacher_weights} goes with a teacher that is named, not "
            "with a module, which has its own; leave it out"
        )


def _load_teacher(config: TrainConfig, objects: RunObjects) -> EmbeddingNetwork | None:
    networks = config.networks
    if objects.teacher is not None:
        sees_crop = networks.teacher_view == "student"
        side = config.images.image_size if sees_crop else networks.teacher_image_size
        return freeze(as_network(objects.teacher, image_size=side))
    if networks.teacher is None:
        return None
    if networks.teacher_view == "center":
        return load_teacher_of(networks)
    return load_teacher_of(replace(networks, teacher_image_size=config.images.image_size))


def _build_student(config: TrainConfig, data: ImageData, objects: RunObjects) -> EmbeddingNetwork:
    torch.manual_seed(config.run.seed)
    side, weights = config.images.image_size, config.networks.student_weights
    crop_fraction = 0.875 if data.native_size is None else 1.0  # small images have no margin
    if objects.student is None:
        name = str(config.networks.student)
        return build_student(name, image_size=side, crop_fraction=crop_fraction, weights=weights)
    network = as_network(objects.student, image_size=side, crop_fraction=crop_fraction)
    if weights is not None:
        load_weights(network, weights)
    return network.train()


def _require_different_views(config: TrainConfig) -> None:
    """Refuse crops that cannot be made or do not differ."""
    options = config.views
    if options.augmentation != "none":
        return
    if options.min_crop_area is not None:
        raise DistillError(
            f"--min-crop-area {options.min_crop_area:g} goes with crops, and --augmentation none "
            "makes none; leave one out"
        )
    if options.student_crops > 1:
        raise DistillError(
            f"--augmentation none makes all --student-crops {options.student_crops} of an image "
            "equal; use crop-flip or crop, or --student-crops 1"
        )


def _require_memory(device: torch.device, needed: MemoryNeed | None) -> None:
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


def build_learner(
    job: Job, run: RunDirectory, embeddings: EmbeddingTable | None
) -> tuple[TrainState, Progress]:
    """Build what is trained, from the newest checkpoint when the run is continued.

    Args:
        job: The prepared job.
        run: Its run directory.
        embeddings: Of the teacher's view of the training images; None for a teacher that runs at
            every step.
    """
    config, setting = job.config, job.setting
    is_resumed = config.run.resume and bool(checkpoints(run.checkpoints))
    context = replace(job.context, is_resumed=is_resumed, teacher_rows=embeddings)
    if embeddings is not None:
        # What could not be read when it was embedded is never in a batch either.
        context = replace(context, images=np.setdiff1d(setting.images.trained, embeddings.bad))
    method = METHODS.get(config.method.method)
    teacher = _build_teacher(job, embeddings) if method.teacher == "every step" else None
    objective = Distillation(
        setting.network,
        teacher,
        method.build(config.loss, context),
        weight=getattr(config.loss, "loss_weight", 1.0),
        num_views=config.views.student_crops,
        device=setting.device,
        precision=setting.embedder.precision,
    )
    learner = make_learner(setting, objective)
    progress = restore(job, run, learner) if config.run.resume else None
    if progress is None and objective.criterion.wants_prefill:
        _prefill(job, objective)
    return learner, progress or Progress()


def training_batches(job: Job, progress: Progress, *, num_epochs: int) -> Iterable[Batch]:
    """Return this rank's batches from where `progress` stands to the end of the last epoch."""
    setting, options = job.setting, job.config.images
    view = training_view(
        require_resolved(options.image_size),
        require_resolved(job.config.views.augmentation),
        min_crop_area=job.config.views.min_crop_area,
        crop_fraction=setting.network.input.crop_fraction,
    )
    views = TrainingViews(
        setting.images.data.train,
        setting.images.trained,
        view,
        num_crops=job.config.views.student_crops,
        seed=setting.run.seed,
    )
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


def _build_teacher(job: Job, embeddings: EmbeddingTable | None) -> Teacher:
    assert job.teacher is not None
    if embeddings is None:
        return OnlineTeacher(
            job.teacher,
            job.setting.device,
            precision=job.setting.embedder.precision,
            batch_size=job.config.networks.teacher_batch_size,
        )
    job.teacher.to("meta")  # its weights are not needed any more, and may be gigabytes
    return CachedTeacher(embeddings, job.setting.device)


def _prefill(job: Job, objective: Distillation) -> None:
    """Give the loss images of an epoch that training never reaches, until its memory is full."""
    beyond = require_resolved(job.config.optimization.epochs)
    objective.train_mode()
    num_images = len(job.setting.images.trained)
    with progress_bar(num_images, description="prefill the queue") as bar:
        for batch in training_batches(job, Progress(epoch=beyond), num_epochs=beyond + 1):
            job.setting.images.bad_images(batch.bad)
            counts = row_counts(len(batch.index))
            bar.update(sum(counts))
            if objective.accepts(counts) and objective.fill(batch):
                break
