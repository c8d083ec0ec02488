"""Checks a training job against its data and networks, and fills in what follows the data.

Everything that can be refused is refused here, before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from distill import distributed
from distill.anchors.queue import AnchorQueue
from distill.anchors.shards import Shard
from distill.checks import check
from distill.config import MethodOptions, TrainConfig
from distill.data.sources import ImageData
from distill.data.transforms import default_augmentation
from distill.engine.device import pick_precision, require_memory
from distill.engine.resolve import given, resolve
from distill.errors import DistillError
from distill.jobs.configure import require_same_run
from distill.jobs.crops import require_crops
from distill.jobs.images import training_images
from distill.jobs.network_cache import load_teacher_of
from distill.jobs.setting import TrainingSetting, data_facts, evaluator_of, open_data
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
        teacher: Frozen, on the device.
    """

    config: TrainConfig
    setting: TrainingSetting
    teacher: EmbeddingNetwork


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
    config, data = open_data(config, str(config.networks.teacher), str(config.networks.student))
    images = training_images(data, config.images, seed=config.run.seed)
    facts = data_facts(
        images, augmentation=default_augmentation(data), min_image_size=spec.min_image_size
    )
    teacher = _load_teacher(config)
    config = resolve(
        config,
        facts,
        teacher_dim=teacher.embedding_dim,
        published_projection_dim=spec.published_projection_dim,
    )
    precision = pick_precision(config.run.precision, device)
    config = replace(config, run=replace(config.run, precision=precision))
    if config.run.resume:
        require_same_run(config)
    student = _build_student(config, data)
    _require_comparable(config, teacher, student)
    require_crops(config, student)
    _require_memory(config, device, facts.num_images, teacher=teacher, student=student)
    batch_size = given(config.optimization.batch_size)
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
    return Job(config=config, setting=setting, teacher=place(teacher, device))


def queue_shard(method: MethodOptions) -> Shard:
    """Return which part of the anchors this process holds."""
    if method.queue_sharding == "none":
        return (0, 1)
    return (distributed.rank(), distributed.world_size())


def _load_teacher(config: TrainConfig) -> EmbeddingNetwork:
    networks = config.networks
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


def _require_comparable(
    config: TrainConfig, teacher: EmbeddingNetwork, student: EmbeddingNetwork
) -> None:
    """Refuse one queue for embeddings of different widths."""
    student_dim = config.method.projection_dim or student.embedding_dim
    if config.method.variant == "one-queue" and student_dim != teacher.embedding_dim:
        raise DistillError(
            f"--variant one-queue compares the student with the teacher's anchors, which are "
            f"{teacher.embedding_dim} wide, and the student's embedding is {student_dim} wide; "
            "leave out --projection-dim and --predictor, or use --variant two-queue-momentum"
        )


def _require_memory(
    config: TrainConfig,
    device: torch.device,
    num_images: int,
    *,
    teacher: EmbeddingNetwork,
    student: EmbeddingNetwork,
) -> None:
    method = config.method
    has_queue = method.anchors == "queue"
    num_anchors = given(method.queue_size) if has_queue else num_images
    student_dim = method.projection_dim or student.embedding_dim
    num_bytes = AnchorQueue.required_bytes(
        num_anchors,
        teacher.embedding_dim,
        None if method.variant == "one-queue" else student_dim,
        QUEUE_DTYPES[method.queue_dtype],
        num_shards=queue_shard(method)[1],
    )
    here = distributed.num_local_ranks()  # they share the memory of the machine
    of_processes = "" if here == 1 else f" in {here} processes"
    require_memory(
        num_bytes * (here if device.type == "cpu" else 1),
        device,
        what=f"{'a queue' if has_queue else 'a bank'} of {num_anchors:,} anchors{of_processes}",
        remedy=f"{'lower --queue-size' if has_queue else 'use --anchors queue'} or use "
        "--queue-dtype bf16",
    )
