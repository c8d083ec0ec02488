"""Checks a training job against its data and networks, and fills in what follows the data.

Everything that can be refused is refused here, before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from distill import distributed
from distill.anchors.queue import AnchorQueue
from distill.anchors.shards import Shard
from distill.checks import check
from distill.config import MethodOptions, TrainConfig
from distill.data.sources import ImageData
from distill.data.transforms import default_augmentation
from distill.engine.data_initialization import has_normalization
from distill.engine.device import pick_precision, require_memory
from distill.engine.resolve import given, resolve, resolve_images
from distill.errors import DistillError
from distill.jobs.configure import require_same_run
from distill.jobs.crops import require_crops, student_views
from distill.jobs.images import TrainingImages, training_images
from distill.jobs.network_cache import load_teacher_of
from distill.jobs.setting import (
    TrainingSetting,
    data_facts,
    evaluator_of,
    open_data,
    require_room_for_loaders,
)
from distill.kernels import fused
from distill.kernels.anchor_kl import check_implementation
from distill.networks import EmbeddingNetwork, place
from students import build_student
from students.registry import student_spec

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
    batch_size = given(config.optimization.batch_size)
    require_room_for_loaders(
        config.images, batch_size, student_views(config, crop_fraction=1.0).sizes
    )
    setting = TrainingSetting(
        images=images,
        evaluator=evaluator_of(
            images, device=device, precision=precision, num_workers=config.images.num_workers
        ),
        network=place(student, device),
        optimization=config.optimization,
        run=config.run,
        # A last batch of one image has no batch statistics.
        drop_last=len(images.trained) > batch_size and len(images.trained) % batch_size == 1,
    )
    placed = None if teacher is None else place(teacher, device)
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
    if networks.teacher_view == "centre":
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
        num_bytes = 2 * number * given(config.baseline.head_dim) * torch.float32.itemsize
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
