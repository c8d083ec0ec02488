"""Pre-trains a backbone without labels and measures it: two views, method, loop, evaluation."""

from __future__ import annotations

import logging
from functools import partial

import safetensors.torch

from distill import distributed
from distill.files import atomic_write
from distill.models.weights import save_network
from distill.run_directory import RunDirectory, read_metrics
from distill.training.checkpoints import Progress
from distill.training.configuration import PretrainConfig, require_resolved
from distill.training.objects import NO_OBJECTS, RunObjects
from distill.training.pretraining import (
    Pretraining,
    beta_schedule,
    target_momentum_schedule,
)
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
from distill.training.setup import PretrainingSetup, millions, prepare_pretraining
from teachers.pretraining import CompressionOptions, TargetOptions

logger = logging.getLogger(__name__)


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


def _run(setup: PretrainingSetup, run: RunDirectory) -> str | None:
    write_config(setup, run, command="pretrain")
    _announce(setup, run)
    if distributed.is_main():
        _measure_before(setup, run)
    state = build_state(setup, build_pretraining(setup), exempt_vectors=True)
    progress = restore(setup, run, state) or Progress()
    stopped_by = fit_run(setup, run, state, progress)
    if stopped_by is None and distributed.is_main():
        save_network(setup.network, run.backbone)
        heads = {name: rows.cpu().contiguous() for name, rows in setup.method.state_dict().items()}
        atomic_write(run.heads, safetensors.torch.save(heads))
        add_metrics(setup, run, training_metrics(setup, progress))
        if setup.config.run.measure != "none":
            measure(setup, run, prefix="", what="backbone")
    return stopped_by


def _announce(setup: PretrainingSetup, run: RunDirectory) -> None:
    logger.info(
        f"{setup.config.method.method} pre-trains {setup.network.spec.name} "
        f"({millions(setup.network)} parameters, {setup.network.embedding_dim}-d) through heads of "
        f"{millions(setup.method)}, {setup.describe()}; run directory {run.path}"
    )
    batch_size, parts = setup.batch_size, setup.config.accumulation.accumulate
    if parts > 1:
        logger.info(
            f"every batch of {batch_size} is computed in {parts} parts: negatives and batch "
            f"statistics come from {batch_size // parts} images, not from {batch_size}"
        )


def _measure_before(setup: PretrainingSetup, run: RunDirectory) -> None:
    """Measure the untrained backbone as asked, unless metrics.json has it."""
    asked = setup.config.run.measure
    unavailable_reason = setup.embedder.unavailable_reason()
    if unavailable_reason is not None and asked != "none":
        logger.info(f"nearest neighbor and cluster alignment are skipped: {unavailable_reason}")
    if asked == "all" and "untrained_nn_accuracy" not in read_metrics(run.path):
        measure(setup, run, prefix="untrained_", what="untrained backbone")


def build_pretraining(setup: PretrainingSetup) -> Pretraining:
    """Build the objective with the schedules that the method's options describe."""
    options, beta, target_momentum = setup.config.loss, None, None
    if isinstance(options, CompressionOptions):
        rise = round(require_resolved(options.beta_epochs) * setup.batches_per_epoch)
        beta = beta_schedule(options.beta, kind=options.beta_schedule, num_steps=rise)
    if isinstance(options, TargetOptions):
        num_steps = setup.num_epochs * setup.batches_per_epoch
        first = require_resolved(options.target_momentum)
        target_momentum = target_momentum_schedule(first, num_steps=num_steps)
    return Pretraining(
        setup.network,
        setup.method,
        beta=beta,
        target_momentum=target_momentum,
        seed=setup.config.run.seed,
        device=setup.device,
        precision=setup.embedder.precision,
    )
