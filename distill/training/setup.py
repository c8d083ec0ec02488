"""Makes a configuration a run that is ready to train: its data, its networks, what follows them.

Everything that can be refused is refused here, before anything is written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from distill import distributed
from distill.config import NetworkOptions
from distill.data.loader import Batch, TrainingViews, num_batches, training_loader
from distill.data.sources import (
    ImageData,
    TrainingImages,
    data_or_default,
    default_augmentation,
    default_pretraining_augmentation,
    open_images,
    training_images,
)
from distill.data.views import training_view, two_views
from distill.data.workers import default_num_workers, require_shared_memory
from distill.device import pick_precision, require_memory
from distill.embeddings.cache import load_teacher_of
from distill.embeddings.embed import DatasetEmbedder
from distill.errors import DistillError
from distill.evaluation.kmeans import kmeans, nearest_centroids
from distill.losses import METHODS, load_plugins
from distill.losses.base import BuildContext, MemoryNeed
from distill.models.networks import (
    EmbeddingNetwork,
    is_own_module,
    num_parameters,
    prepare_for_device,
)
from distill.models.weights import load_weights
from distill.run_directory import holds_run, require_usable
from distill.training.callbacks import Callback
from distill.training.checkpoints import Progress, require_known_format
from distill.training.configuration import (
    Config,
    DataFacts,
    PretrainConfig,
    TrainConfig,
    check,
    check_pretraining,
    require_resolved,
    require_same_run,
    resolve,
    resolve_images,
    resolve_pretraining,
    with_output,
)
from distill.training.initialization import has_normalization
from distill.training.objects import NO_OBJECTS, RunObjects, as_network
from students.registry import build_student, student_spec
from teachers.load import freeze
from teachers.pretraining import PRETRAIN_METHODS, PretrainMethod
from teachers.resnet import backbone_name, build_backbone

logger = logging.getLogger(__name__)

_FAISS_SEEDS = 2**31


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A resolved configuration with its data and the network that is trained.

    Attributes:
        config: Nothing in it follows the data any more.
        images: What is trained on and what is held out.
        embedder: Data, device and precision, for every measurement of the run.
        network: What is trained and measured, on the device.
        views: What the network sees of each image.
        drop_last: Whether an epoch's last batch is left out when it is smaller.
        callbacks: Of the caller.
        own_module: The network that is trained, where it was given as an object.
    """

    config: Any
    images: TrainingImages
    embedder: DatasetEmbedder
    network: EmbeddingNetwork
    views: TrainingViews
    drop_last: bool
    callbacks: Sequence[Callback] = ()
    own_module: nn.Module | None = None

    @property
    def device(self) -> torch.device:
        """Where the networks lie."""
        return self.embedder.device

    @property
    def batch_size(self) -> int:
        """Images of a step, of all ranks."""
        return require_resolved(self.config.optimization.batch_size)

    @property
    def num_epochs(self) -> int:
        """Epochs of the whole run."""
        return require_resolved(self.config.optimization.epochs)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch."""
        return num_batches(len(self.images.trained), self.batch_size, drop_last=self.drop_last)

    def batches(self, progress: Progress, *, num_epochs: int | None = None) -> Iterable[Batch]:
        """Return this rank's batches from where `progress` stands to the end of the run."""
        return training_loader(
            self.views,
            batch_size=self.batch_size,
            num_epochs=self.num_epochs if num_epochs is None else num_epochs,
            start_epoch=progress.epoch,
            start_batch=progress.batch,
            num_workers=self.config.images.num_workers,
            drop_last=self.drop_last,
            pin_memory=self.device.type == "cuda",
            shard=(distributed.rank(), distributed.world_size()),
        )

    def describe(self) -> str:
        """Say in words which images are trained on, and where."""
        images, num_ranks = self.images, distributed.world_size()
        words = (
            f"{len(images.trained):,} images of {images.data.name} and {len(images.held_out):,} "
            f"held out, on {self.device} in {self.embedder.precision}"
        )
        if num_ranks == 1:
            return words
        rate = require_resolved(self.config.optimization.learning_rate)
        return (
            f"{words}, batches of {self.batch_size} images over {num_ranks} processes, learning "
            f"rate {rate:g} at its peak"
        )


@dataclass(frozen=True, kw_only=True)
class DistillationSetup(Setup):
    """A distillation run.

    Attributes:
        teacher: Frozen, on the device; None for a method without one, where none was named.
        context: What the loss is built from, but the teacher's embeddings.
    """

    teacher: EmbeddingNetwork | None
    context: BuildContext


@dataclass(frozen=True, kw_only=True)
class PretrainingSetup(Setup):
    """A pre-training run.

    Attributes:
        method: Heads and loss, on the device.
    """

    method: PretrainMethod


def prepare(
    config: TrainConfig, device: torch.device, objects: RunObjects = NO_OBJECTS
) -> DistillationSetup:
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
    networks, method = config.networks, config.method.method
    names = (None if method == "compress" else method, networks.teacher, networks.student)
    config, images = _open(config, *filter(None, names), data=objects.data)
    if isinstance(objects.student, EmbeddingNetwork) and config.images.image_size is None:
        side = objects.student.input.image_size
        config = replace(config, images=replace(config.images, image_size=side))
    spec = None if objects.student else student_spec(str(networks.student))
    augmentation = default_augmentation(images.data)
    facts = _facts(images, augmentation, min_image_size=spec.min_image_size if spec else 1)
    config = replace(config, images=resolve_images(config.images, facts))
    teacher, student = _load_teacher(config, objects), _build_student(config, images.data, objects)
    config = resolve(
        config,
        facts,
        teacher_dim=0 if teacher is None else teacher.embedding_dim,
        student_normalizes=has_normalization(student),
        published_projection_dim=spec.published_projection_dim if spec else None,
    )
    config = _with_precision(config, device)
    _require_different_views(config)
    loss, context = METHODS.get(method), _context(config, images, teacher, student, device)
    loss.require_possible(config.loss, context)
    _require_memory(device, loss.memory_needed(config.loss, context))
    num_views = config.views.student_crops
    batch_size = _require_room_for_batches(config, num_views)
    view = training_view(
        require_resolved(config.images.image_size),
        require_resolved(config.views.augmentation),
        min_crop_area=config.views.min_crop_area,
        crop_fraction=student.input.crop_fraction,
    )
    seed, trained = config.run.seed, images.trained
    return DistillationSetup(
        config=config,
        images=images,
        embedder=embedder_of(
            images,
            device=device,
            precision=config.run.precision,
            num_workers=config.images.num_workers,
        ),
        network=prepare_for_device(student, device),
        views=TrainingViews(images.data.train, trained, view, num_crops=num_views, seed=seed),
        # A last batch of one image has no batch statistics.
        drop_last=len(trained) > batch_size and len(trained) % batch_size == 1,
        callbacks=objects.callbacks,
        own_module=objects.student,
        teacher=None if teacher is None else prepare_for_device(teacher, device),
        context=context,
    )


def prepare_pretraining(
    config: PretrainConfig, device: torch.device, objects: RunObjects = NO_OBJECTS
) -> PretrainingSetup:
    """Do the same for a pre-training run.

    Arguments and errors as for `prepare`.
    """
    check_pretraining(config)
    options = config.backbone
    name = backbone_name(options.arch, width=options.width)  # refuses unknown ones
    config, images = _open(config, config.method.method, name, data=objects.data)
    facts = _facts(images, default_pretraining_augmentation(images.data), min_image_size=1)
    config = _with_precision(resolve_pretraining(config, facts), device)
    _require_divisible(config)
    batch_size = _require_room_for_batches(config, num_views=2)
    num_batches(len(images.trained), batch_size, drop_last=True)  # refuses fewer than a batch
    torch.manual_seed(config.run.seed)
    stem, side = require_resolved(config.backbone.stem), require_resolved(config.images.image_size)
    backbone = build_backbone(
        backbone_name(options.arch, width=options.width, stem=stem),
        image_size=side,
        crop_fraction=_crop_fraction(images.data),
    )
    views = two_views(side, require_resolved(config.views.augmentation))
    network = prepare_for_device(backbone, device)
    method = PRETRAIN_METHODS.get(config.method.method)
    return PretrainingSetup(
        config=config,
        images=images,
        embedder=embedder_of(
            images,
            device=device,
            precision=config.run.precision,
            num_workers=config.images.num_workers,
        ),
        network=network,
        views=TrainingViews(
            images.data.train,
            images.trained,
            views.view,
            views.second_view,
            distortion=views.draw,
            seed=config.run.seed,
        ),
        drop_last=True,  # every step has the same number of negatives
        callbacks=objects.callbacks,
        method=method.build(config.loss, backbone.embedding_dim).to(device),
    )


def _open(config: Config, *names: str, data: ImageData | None) -> tuple[Config, TrainingImages]:
    """Open the images of a run and settle its directory, named after `names` and the data.

    Returns:
        The configuration with data and output filled in, `resume` only where there is a run, and
        the images.
    """
    source = data_or_default(config.images.data)
    config = replace(config, images=replace(config.images, data=source))
    data = open_images(source) if data is None else data
    config = with_output(config, *names, data.name)
    output = require_resolved(config.run.output)
    is_resumed = config.run.resume and holds_run(output)
    config = replace(config, run=replace(config.run, resume=is_resumed))
    require_usable(output, resume=is_resumed)
    return config, training_images(data, config.images, seed=config.run.seed)


def _facts(images: TrainingImages, augmentation: str, *, min_image_size: int) -> DataFacts:
    return DataFacts(
        num_images=len(images.trained),
        native_size=images.data.native_size,
        augmentation=augmentation,
        min_image_size=min_image_size,
        default_num_workers=default_num_workers(images.data.train),
    )


def _with_precision(config: Config, device: torch.device) -> Config:
    """Return a configuration that is resolved to the last option, of the same run if resumed."""
    precision = pick_precision(config.run.precision, device)
    config = replace(config, run=replace(config.run, precision=precision))
    if config.run.resume and config.run.output is not None:
        require_same_run(config)
        require_known_format(config.run.output / "checkpoints")
    return config


def embedder_of(
    images: TrainingImages, *, device: torch.device, precision: str, num_workers: int | None
) -> DatasetEmbedder:
    """Return what embeds the images of a run for its measurements."""
    return DatasetEmbedder(
        data=images.data,
        train_index=images.train_index,
        val_index=images.val_index,
        device=device,
        precision=precision,
        num_workers=num_workers,
        bad_images=images.bad_images,
    )


def _context(
    config: TrainConfig,
    images: TrainingImages,
    teacher: EmbeddingNetwork | None,
    student: EmbeddingNetwork,
    device: torch.device,
) -> BuildContext:
    seed, labels = config.run.seed, images.data.train.labels
    if labels is None:
        labels = np.full(len(images.data.train), -1)

    def cluster(rows: np.ndarray, number: int) -> np.ndarray:
        # One start: ten, as evaluation makes, would take ten times as long with 16,000 clusters.
        centroids = kmeans(rows, number, seed=seed % _FAISS_SEEDS, restarts=1)
        return nearest_centroids(rows, centroids)

    return BuildContext(
        student_dim=student.embedding_dim,
        teacher_dim=0 if teacher is None else teacher.embedding_dim,
        images=images.trained,
        num_positions=len(images.data.train),
        num_classes=int(labels.max(initial=-1)) + 1,
        num_unlabeled=int((labels[images.trained] < 0).sum()),
        data_name=images.data.train.name,
        device=device,
        seed=seed,
        rank=distributed.rank(),
        num_ranks=distributed.world_size(),
        kmeans=cluster,
    )


def _crop_fraction(data: ImageData) -> float:
    return 0.875 if data.native_size is None else 1.0  # small images have no margin


def _load_teacher(config: TrainConfig, objects: RunObjects) -> EmbeddingNetwork | None:
    networks = config.networks
    if networks.teacher_view == "student":
        networks = replace(networks, teacher_image_size=config.images.image_size)
    if objects.teacher is not None:
        return freeze(as_network(objects.teacher, image_size=networks.teacher_image_size))
    return None if networks.teacher is None else load_teacher_of(networks)


def _build_student(config: TrainConfig, data: ImageData, objects: RunObjects) -> EmbeddingNetwork:
    torch.manual_seed(config.run.seed)
    side, weights = config.images.image_size, config.networks.student_weights
    crop_fraction = _crop_fraction(data)
    if objects.student is None:
        name = str(config.networks.student)
        return build_student(name, image_size=side, crop_fraction=crop_fraction, weights=weights)
    network = as_network(objects.student, image_size=side, crop_fraction=crop_fraction)
    if weights is not None:
        load_weights(network, weights)
    return network.train()


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
        device, num_bytes, what = torch.device("cpu"), needed.num_bytes, needed.what
    else:
        here = distributed.num_local_ranks()  # they share the memory of the machine
        num_bytes = needed.num_bytes * (here if device.type == "cpu" else 1)
        what = f"{needed.what}{f' in {here} processes' if here > 1 else ''}"
    require_memory(num_bytes, device, what=what, remedy=needed.remedy)


def _require_room_for_batches(config: Any, num_views: int) -> int:
    """Refuse batches that do not fit into shared memory; return the images of a batch."""
    batch_size = require_resolved(config.optimization.batch_size)
    require_shared_memory(
        -(-batch_size // distributed.world_size()),
        [require_resolved(config.images.image_size)] * num_views,
        require_resolved(config.images.num_workers),
        num_processes=distributed.num_local_ranks(),
    )
    return batch_size


def _require_divisible(config: PretrainConfig) -> None:
    """Refuse a batch that ranks cannot share equally."""
    batch_size, ranks = require_resolved(config.optimization.batch_size), distributed.world_size()
    least = 2 * config.accumulation.accumulate
    if batch_size % ranks or batch_size // ranks < least:
        raise DistillError(
            f"--batch-size {batch_size} cannot be shared by {ranks} processes with at least "
            f"{least} images each; choose a larger multiple of {ranks}"
        )


def millions(network: nn.Module) -> str:
    """Return the number of a network's parameters in words for people: "11.2 M"."""
    return f"{num_parameters(network) / 1e6:.1f} M"
