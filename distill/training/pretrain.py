"""Joins the options of pre-training with the self-supervised methods of `teachers`.

Pre-trains a backbone without labels and measures it: two views, method, loop, evaluation.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import safetensors.torch
import torch

from distill import distributed
from distill.data.loader import Batch, TrainingViews, training_loader
from distill.data.sources import ImageData, default_pretraining_augmentation, training_images
from distill.data.views import two_views
from distill.device import pick_precision
from distill.errors import DistillError
from distill.evaluation.standard import standard_metrics
from distill.files import atomic_write
from distill.models.networks import EmbeddingNetwork, num_parameters, prepare_for_device
from distill.models.weights import save_network
from distill.run_directory import RunDirectory, read_metrics
from distill.training.callbacks import Callback
from distill.training.checkpoints import Progress
from distill.training.configuration import (
    PretrainConfig,
    check_pretraining,
    require_resolved,
    require_same_run,
    resolve_pretraining,
)
from distill.training.fitting import (
    RunResult,
    add_metrics,
    fit_run,
    make_learner,
    restore,
    result_of,
    run_job,
    training_metrics,
    write_config,
)
from distill.training.objects import NO_OBJECTS, RunObjects
from distill.training.pretraining import (
    Pretraining,
    Schedule,
    beta_schedule,
    target_momentum_schedule,
)
from distill.training.setting import (
    TrainingSetting,
    data_facts,
    describe_setting,
    embedder_of,
    open_data,
    require_room_for_loaders,
)
from teachers.pretraining import (
    PRETRAIN_METHODS,
    CompressionOptions,
    PretrainMethod,
    TargetOptions,
)
from teachers.resnet import backbone_name, build_backbone

logger = logging.getLogger(__name__)


def _schedules(options: Any, setting: TrainingSetting) -> tuple[Schedule | None, Schedule | None]:
    """Return beta and the target's momentum as functions of the step; None where unused."""
    beta = momentum = None
    if isinstance(options, CompressionOptions):
        rise = round(require_resolved(options.beta_epochs) * setting.batches_per_epoch)
        beta = beta_schedule(options.beta, kind=options.beta_schedule, num_steps=rise)
    if isinstance(options, TargetOptions):
        first = require_resolved(options.target_momentum)
        momentum = target_momentum_schedule(first, num_steps=setting.num_steps)
    return beta, momentum


@dataclass(frozen=True)
class PretrainJob:
    """A resolved configuration with its data and its networks.

    Attributes:
        config: Nothing in it follows the data any more.
        setting: Images, backbone, device and rhythm.
        method: Heads and loss, on the device.
        callbacks: Of the caller.
    """

    config: PretrainConfig
    setting: TrainingSetting
    method: PretrainMethod
    callbacks: Sequence[Callback] = ()


def pretrain(config: PretrainConfig, objects: RunObjects = NO_OBJECTS) -> RunResult:
    """Pre-train a backbone as `config` says and measure it.

    Args:
        config: As it was asked for.
        objects: Used in place of what `config` names.

    Raises:
        DistillError: Anything about the request that cannot be met; nothing was written then.
        NonFiniteLossError: The loss is not finite; the last checkpoint is intact.
    """
    return run_job(config, partial(prepare_pretraining, objects=objects), _run)


def _run(job: PretrainJob, run: RunDirectory) -> RunResult:
    write_config(job, run, command="pretrain")
    _announce(job, run)
    _measure(job, run, prefix="untrained_", what="untrained backbone")
    objective = _build_objective(job)
    learner = make_learner(job.setting, objective, exempt_vectors=True)
    restored = restore(job, run, learner) if job.config.run.resume else None
    progress = restored or Progress()
    batches = partial(_training_batches, job)
    stopped_by = fit_run(job, run, learner, progress, batches)
    if stopped_by is None and distributed.is_main():
        save_network(job.setting.network, run.backbone)
        heads = {
            name: tensor.cpu().contiguous() for name, tensor in job.method.state_dict().items()
        }
        atomic_write(run.heads, safetensors.torch.save(heads))
        add_metrics(job, run, training_metrics(job.setting, progress))
        _measure(job, run, prefix="", what="backbone")
    distributed.barrier()
    return result_of(job, run, stopped_by)


def prepare_pretraining(
    config: PretrainConfig, device: torch.device, objects: RunObjects = NO_OBJECTS
) -> PretrainJob:
    """Check a configuration, open its data, build its networks, fill in what follows the data.

    Raises:
        DistillError: Anything that cannot be met; nothing is written.
    """
    check_pretraining(config)
    name = backbone_name(config.backbone.arch, width=config.backbone.width)  # refuses unknown ones
    config, data = open_data(config, config.method.method, name, given=objects.data)
    images = training_images(data, config.images, seed=config.run.seed)
    facts = data_facts(
        images, augmentation=default_pretraining_augmentation(data), min_image_size=1
    )
    config = resolve_pretraining(config, facts)
    precision = pick_precision(config.run.precision, device)
    config = replace(config, run=replace(config.run, precision=precision))
    if config.run.resume:
        require_same_run(config)
    _require_divisible(config)
    side = require_resolved(config.images.image_size)
    require_room_for_loaders(
        config.images, require_resolved(config.optimization.batch_size), [side, side]
    )
    backbone = _build_backbone(config, data)
    setting = TrainingSetting(
        images=images,
        embedder=embedder_of(
            images, device=device, precision=precision, num_workers=config.images.num_workers
        ),
        network=prepare_for_device(backbone, device),
        optimization=config.optimization,
        run=config.run,
        drop_last=True,  # every step has the same number of negatives
        accumulate=config.accumulation.accumulate,
    )
    assert setting.batches_per_epoch  # refuses fewer images than a batch
    method = PRETRAIN_METHODS.get(config.method.method)
    heads = method.build(config.loss, backbone.embedding_dim).to(device)
    return PretrainJob(config, setting, heads, objects.callbacks)


def _require_divisible(config: PretrainConfig) -> None:
    """Refuse a batch that ranks cannot share equally."""
    batch_size, ranks = require_resolved(config.optimization.batch_size), distributed.world_size()
    if batch_size % ranks or batch_size // ranks < 2 * config.accumulation.accumulate:
        raise DistillError(
            f"--batch-size {batch_size} cannot be shared by {ranks} processes with at least "
            f"{2 * config.accumulation.accumulate} images each; choose a larger multiple of {ranks}"
        )


def _build_backbone(config: PretrainConfig, data: ImageData) -> EmbeddingNetwork:
    torch.manual_seed(config.run.seed)
    options = config.backbone
    return build_backbone(
        backbone_name(options.arch, width=options.width, stem=require_resolved(options.stem)),
        image_size=require_resolved(config.images.image_size),
        crop_fraction=0.875 if data.native_size is None else 1.0,  # small images have no margin
    )


def _build_objective(job: PretrainJob) -> Pretraining:
    beta, target_momentum = _schedules(job.config.loss, job.setting)
    return Pretraining(
        job.setting.network,
        job.method,
        beta=beta,
        target_momentum=target_momentum,
        seed=job.config.run.seed,
        device=job.setting.device,
        precision=job.setting.embedder.precision,
    )


def _training_batches(job: PretrainJob, progress: Progress) -> Iterable[Batch]:
    """Return this rank's batches from where `progress` stands to the end of the run."""
    setting, options = job.setting, job.config.images
    kind = require_resolved(job.config.views.augmentation)
    views = two_views(require_resolved(options.image_size), kind)
    return training_loader(
        TrainingViews(
            setting.images.data.train,
            setting.images.trained,
            views.view,
            views.second_view,
            distortion=views.draw,
            seed=setting.run.seed,
        ),
        batch_size=require_resolved(setting.optimization.batch_size),
        num_epochs=setting.num_epochs,
        start_epoch=progress.epoch,
        start_batch=progress.batch,
        num_workers=options.num_workers,
        drop_last=setting.drop_last,
        pin_memory=setting.device.type == "cuda",
        shard=(distributed.rank(), distributed.world_size()),
    )


def _announce(job: PretrainJob, run: RunDirectory) -> None:
    setting, optimization = job.setting, job.config.optimization
    logger.info(
        f"{job.config.method.method} pre-trains {setting.network.spec.name} "
        f"({num_parameters(setting.network) / 1e6:.1f} M parameters, "
        f"{setting.network.embedding_dim}-d) through heads of "
        f"{num_parameters(job.method) / 1e6:.1f} M, {describe_setting(setting)}; "
        f"run directory {run.path}"
    )
    batch_size, parts = require_resolved(optimization.batch_size), setting.accumulate
    if parts > 1:
        logger.info(
            f"every batch of {batch_size} is computed in {parts} parts: negatives and batch "
            f"statistics come from {batch_size // parts} images, not from {batch_size}"
        )


def _measure(job: PretrainJob, run: RunDirectory, *, prefix: str, what: str) -> None:
    """Measure the backbone where the data allows it, unless metrics.json has it already."""
    is_asked = {"all": True, "trained": not prefix, "none": False}[job.config.run.measure]
    if not (distributed.is_main() and is_asked):
        return
    embedder, known = job.setting.embedder, read_metrics(run.path)
    unavailable_reason = embedder.unavailable_reason()
    if unavailable_reason is not None:
        logger.info(f"nearest neighbor and cluster alignment are skipped: {unavailable_reason}")
        return
    if prefix and f"{prefix}nn_accuracy" in known:
        return
    measured = standard_metrics(*embedder.embed_both(job.setting.network, what=what))
    add_metrics(job, run, {prefix + name: value for name, value in measured.items()})
