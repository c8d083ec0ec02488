"""Runs what was set up: restore, train, check on held-out images, save, and tell what came out.

`distill train` and `distill pretrain` share all of it, in one process or several.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from distill import distributed
from distill.data.sources import fingerprints
from distill.data.workers import guarded_batches
from distill.device import keep_freed_memory, make_deterministic, pick_device
from distill.errors import NonFiniteLossError
from distill.evaluation.standard import standard_metrics
from distill.run_directory import RunDirectory, read_metrics
from distill.training.callbacks import Callback, CallbackList, RunLog, TensorBoardLog
from distill.training.checkpoints import CheckpointWriter, Progress, load_newest
from distill.training.configuration import (
    Config,
    identity,
    require_own_checkpoint,
    require_resolved,
)
from distill.training.diagnostics import EmbeddingSpread, HoldoutCheck
from distill.training.loop import LoopSettings, Method, TrainState, fit
from distill.training.optimizer import build_optimizer, build_schedule
from distill.training.setup import Setup
from teachers.load import load_trained

logger = logging.getLogger(__name__)

AnySetup = TypeVar("AnySetup", bound=Setup)


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        output: The run directory.
        metrics: The content of its metrics.json.
        stopped_by: Name of the signal that ended it early, None when it is complete.
        own_module: The network that was trained, where it was given as an object.
    """

    output: Path
    metrics: dict[str, Any]
    stopped_by: str | None
    own_module: nn.Module | None = field(default=None, repr=False)

    @cached_property
    def student(self) -> nn.Module:
        """The trained network in evaluation mode, on the CPU; a module of one's own is that module.

        Raises:
            DistillError: The run was stopped before it ended.
        """
        if self.own_module is not None:
            return self.own_module.eval()
        return load_trained(self.output)


def run_job(
    config: Config,
    prepare: Callable[[Config, torch.device], AnySetup],
    train: Callable[[AnySetup, RunDirectory], str | None],
) -> RunResult:
    """Join the other processes if there are any, prepare, open the run directory, train.

    Args:
        config: As it was asked for.
        prepare: Checks it and returns the setup on this process's device; writes nothing.
        train: Does the work; returns the signal that ended it early, if any.
    """
    device = distributed.start(pick_device(config.run.device))
    make_deterministic(config.run.deterministic)
    if device.type == "cpu":
        keep_freed_memory()
    try:
        setup = prepare(config, device)
        distributed.barrier()  # all have looked at the run directory before the first writes there
        resume = setup.config.run.resume
        run = RunDirectory(require_resolved(setup.config.run.output), resume=resume)
        try:
            stopped_by = train(setup, run)
            distributed.barrier()
            result = RunResult(run.path, read_metrics(run.path), stopped_by, setup.own_module)
            if stopped_by is None and distributed.is_main():
                CallbackList(setup.callbacks).on_end(result)
            return result
        finally:
            run.close()
    finally:
        distributed.stop()


def write_config(setup: Setup, run: RunDirectory, *, command: str) -> None:
    """Write what the run is made of, its images included."""
    if distributed.is_main():
        found = fingerprints(setup.images.data)
        run.write_config(setup.config, command=command, fingerprints=found)


def build_state(setup: Setup, objective: Method, *, exempt_vectors: bool = False) -> TrainState:
    """Return the objective with its optimizer and its schedule.

    Args:
        setup: Of the run.
        objective: What is trained.
        exempt_vectors: See `build_optimizer`.
    """
    options = setup.config.optimization
    optimizer = build_optimizer(
        objective.parameters(),
        options,
        exempt_vectors=exempt_vectors,
        precision=setup.embedder.precision,
    )
    schedule = build_schedule(optimizer, options, steps_per_epoch=setup.batches_per_epoch)
    return TrainState(objective, optimizer, schedule, EmbeddingSpread(setup.network))


def restore(setup: Setup, run: RunDirectory, state: TrainState) -> Progress | None:
    """Put the newest checkpoint of a run into `state`; None when there is none yet.

    Raises:
        DistillError: A file of the checkpoint is missing or damaged, or it is of another run.
    """
    checkpoint = load_newest(run.checkpoints) if setup.config.run.resume else None
    if checkpoint is None:
        return None
    require_own_checkpoint(checkpoint.path, checkpoint.run, setup.config)
    state.load_state_dict(checkpoint.state, checkpoint.shards)
    progress = checkpoint.progress
    setup.images.bad_images.recall(progress.skipped)
    logger.info(f"continuing after step {progress.step}, {progress.epoch} epochs are complete")
    return progress


def fit_run(setup: Setup, run: RunDirectory, state: TrainState, progress: Progress) -> str | None:
    """Train to the end of the run; return the signal that stopped it early, if any.

    Args:
        setup: Of the run.
        run: Its directory.
        state: What is trained.
        progress: Where the run stands.

    Raises:
        NonFiniteLossError: The loss or the weights are not finite; the last checkpoint is intact.
        DistillError: An image cannot be read, when that is to end the run; the disk refuses a
            checkpoint, likewise.
    """
    config, bad_images = setup.config, setup.images.bad_images
    callbacks: list[Callback] = []
    log = board = None
    if distributed.is_main():
        log = RunLog(run.path, num_bytes=progress.log_bytes)
        board = TensorBoardLog(run.path, step=progress.step)
        callbacks = [log, board, *setup.callbacks]
    writer = CheckpointWriter(run.checkpoints, identity(config), config.run)
    check = HoldoutCheck(
        setup.embedder, setup.images, every=require_resolved(config.run.nn_every),
        num_epochs=setup.num_epochs, seed=config.run.seed,
    )  # fmt: skip

    def save(score: float | None) -> None:
        _require_finite(state, progress)
        progress.log_bytes = 0 if log is None else log.sync()
        bad_images.share()
        progress.skipped = sorted(bad_images.skipped)
        writer.save(progress, state.state_dict(), state.objective.shard(), score)

    def evaluate(epoch: int) -> dict[str, float]:
        bad_images.share()
        return check(setup.network, epoch) if distributed.is_main() else {}

    settings = LoopSettings(
        num_epochs=setup.num_epochs,
        num_images=len(setup.images.trained),
        batches_per_epoch=setup.batches_per_epoch,
        log_every=config.run.log_every,
        clip_grad_norm=config.optimization.clip_grad_norm,
        accumulate=config.accumulation.accumulate if hasattr(config, "accumulation") else 1,
        checkpoint_every=config.run.checkpoint_every,
        seed=config.run.seed,
        num_workers=require_resolved(config.images.num_workers),
    )
    try:
        with require_resolved(state.spread):
            return fit(
                state,
                guarded_batches(lambda: setup.batches(progress)),
                settings,
                progress,
                callbacks=CallbackList(callbacks),
                on_bad_images=bad_images,
                evaluate=evaluate,
                save=save,
            )
    finally:
        if log is not None and board is not None:
            log.close()
            board.close()


def measure(setup: Setup, run: RunDirectory, *, prefix: str, what: str) -> None:
    """Measure the trained network where the data allows it, on the first rank.

    Args:
        setup: Of the run.
        run: Its directory.
        prefix: Of the numbers' names; "" after training.
        what: What is measured, in words.
    """
    if setup.embedder.unavailable_reason() is None:
        splits = setup.embedder.embed_both(setup.network, what=what)
        metrics = {prefix + name: value for name, value in standard_metrics(*splits).items()}
        add_metrics(setup, run, metrics)


def add_metrics(setup: Setup, run: RunDirectory, metrics: Mapping[str, Any]) -> None:
    """Add numbers to metrics.json, and tell the callbacks; on the first rank."""
    run.add_metrics(dict(metrics))
    CallbackList(setup.callbacks).on_evaluation(metrics)


def training_metrics(setup: Setup, progress: Progress) -> dict[str, Any]:
    """Return what a finished run says of itself: seconds, steps, images left out."""
    return {
        "train_seconds": round(progress.seconds, 1),
        "num_steps": progress.step,
        "num_skipped_images": len(setup.images.bad_images.skipped),
    }


def _require_finite(state: TrainState, progress: Progress) -> None:
    if not all(torch.isfinite(parameter).all() for parameter in state.objective.parameters()):
        raise NonFiniteLossError(
            f"the trained weights are not finite after step {progress.step}; no checkpoint was "
            "written. Lower --learning-rate, set --clip-grad-norm or use --precision fp32"
        )
