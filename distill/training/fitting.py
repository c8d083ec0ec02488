"""The check between epochs: nearest-neighbor accuracy on training images that are held out.

A falling loss alone does not say that the student learns what its user wants, and validation images
must not choose anything. Held-out images are therefore looked up among the images that are trained
on; both sides are capped, so that the check stays short on large sets.

Saves a run while it trains; a disk that refuses is told of, and stops it only by choice.

Runs a training job, in one process or several: restore, loop, log, checks, checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from distill import distributed
from distill.config import RunOptions
from distill.data.loader import Batch
from distill.data.sources import fingerprints
from distill.data.workers import guarded_batches
from distill.device import keep_freed_memory, make_deterministic, pick_device
from distill.embeddings.embed import DatasetEmbedder
from distill.embeddings.search import require_labels
from distill.errors import DistillError, NonFiniteLossError
from distill.evaluation.nn import nn_accuracy
from distill.models.networks import EmbeddingNetwork
from distill.run_directory import RunDirectory, read_metrics
from distill.training.callbacks import Callback, CallbackList
from distill.training.checkpoints import (
    About,
    CheckpointNotWrittenError,
    Progress,
    checkpoint_bytes,
    checkpoints,
    load_newest,
    save_checkpoint,
)
from distill.training.configuration import (
    Config,
    identity,
    require_own_checkpoint,
    require_resolved,
)
from distill.training.diagnostics import EmbeddingSpread
from distill.training.log import RunLog
from distill.training.loop import LoopSettings, Method, TrainState, fit
from distill.training.optimizer import build_optimizer, build_schedule
from distill.training.setting import TrainingSetting
from teachers.load import load_trained

logger = logging.getLogger(__name__)

MAX_INDEXED = 10_000
MAX_QUERIES = 2_000


class HoldoutMonitor:
    """Measures a network on held-out training images.

    Args:
        embedder: The setting; its training images are used, never its validation images.
        trained: Indices of the images that are trained on.
        held_out: Indices of those that are not.
        seed: Picks the images when there are more than the caps.
    """

    def __init__(
        self, embedder: DatasetEmbedder, trained: np.ndarray, held_out: np.ndarray, *, seed: int
    ) -> None:
        self.embedder = embedder
        self.indexed = _sample(trained, MAX_INDEXED, seed)
        self.queries = _sample(held_out, MAX_QUERIES, seed)

    def unavailable_reason(self) -> str | None:
        """Return why the check cannot be made, None when it can."""
        labels = self.embedder.data.train.labels
        if len(self.queries) == 0:
            return "no image is held out (--holdout)"
        try:
            require_labels(None if labels is None else labels[self.indexed], what="the images")
        except DistillError as error:
            return str(error)
        return None

    def accuracy(self, network: EmbeddingNetwork) -> float:
        """Return the 1-nearest-neighbor accuracy of the held-out images."""
        images, both = self.embedder.data.train, np.concatenate([self.indexed, self.queries])
        found = self.embedder.embed(network, images, both, "held-out check")
        is_query = np.isin(found.index, self.queries)
        return nn_accuracy(
            found.features[~is_query],
            found.labels[~is_query],
            found.features[is_query],
            found.labels[is_query],
        )


def _sample(index: np.ndarray, most: int, seed: int) -> np.ndarray:
    if len(index) <= most:
        return index
    return np.sort(np.random.default_rng(seed).choice(index, size=most, replace=False))


class Saver:
    """Writes checkpoints, says how large they are and what happens when they cannot be.

    Args:
        config: Of the run.
        run: Its directory.
        learner: What is saved.
    """

    def __init__(self, config: Any, run: RunDirectory, learner: TrainState) -> None:
        self._options: RunOptions = config.run
        self._identity = identity(config)
        self._run, self._learner = run, learner
        self._has_said_size = False

    def save(self, progress: Progress, score: float | None) -> None:
        """Write a checkpoint; every rank calls it.

        Args:
            progress: Where the run stands.
            score: Accuracy on held-out training images, where it was just measured.

        Raises:
            CheckpointNotWrittenError: The disk refuses it, and the run is to stop then.
        """
        about = About(self._identity, score, self._options.keep_every)
        state, shard = self._learner.state_dict(), self._learner.objective.shard()
        try:
            path = save_checkpoint(self._run.checkpoints, progress, state, shard, about)
        except CheckpointNotWrittenError as error:
            self._complain(progress, error)
            return
        if not self._has_said_size:
            logger.info(
                f"a checkpoint takes {checkpoint_bytes(path) / 2**20:.1f} MiB in {path.parent}"
            )
            self._has_said_size = True

    def _complain(self, progress: Progress, error: CheckpointNotWrittenError) -> None:
        found = checkpoints(self._run.checkpoints)
        last = f"the last one, {found[-1].name}, is intact" if found else "there is none before it"
        message = f"after step {progress.step} {error}; {last}"
        if self._options.on_failed_checkpoint == "continue":
            logger.warning(f"{message}; training goes on. Make room before the next one is due")
            return
        raise CheckpointNotWrittenError(
            f"{message}. Make room, then go on with --output {self._run.path} --resume"
        ) from error


class _Configured(Protocol):
    @property
    def config(self) -> Any: ...

    @property
    def setting(self) -> TrainingSetting: ...

    @property
    def callbacks(self) -> Sequence[Callback]: ...


Job = TypeVar("Job", bound=_Configured)


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        output: The run directory.
        metrics: The content of its metrics.json.
        stopped_by: Name of the signal that ended it early, None when it is complete.
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
    prepare: Callable[[Config, torch.device], Job],
    train: Callable[[Job, RunDirectory], RunResult],
) -> RunResult:
    """Join the other processes if there are any, prepare the job, open its run directory, train.

    Args:
        config: Of the job.
        prepare: Checks it and returns the job on this process's device; writes nothing.
        train: Does the work.
    """
    device = distributed.start(pick_device(config.run.device))
    make_deterministic(config.run.deterministic)
    if device.type == "cpu":
        keep_freed_memory()
    try:
        job = prepare(config, device)
        distributed.barrier()  # all have looked at the run directory before the first writes there
        run = RunDirectory(require_resolved(job.config.run.output), resume=job.config.run.resume)
        try:
            return train(job, run)
        finally:
            run.close()
    finally:
        distributed.stop()


def write_config(job: _Configured, run: RunDirectory, *, command: str) -> None:
    """Write what the run is made of, its images included."""
    if distributed.is_main():
        found = fingerprints(job.setting.images.data)
        run.write_config(job.config, command=command, fingerprints=found)


def make_learner(
    setting: TrainingSetting, objective: Method, *, exempt_vectors: bool = False
) -> TrainState:
    """Return the objective with its optimizer and its schedule.

    Args:
        setting: Of the job.
        objective: What is trained.
        exempt_vectors: See `build_optimizer`.
    """
    options = setting.optimization
    optimizer = build_optimizer(
        objective.parameters(),
        options,
        exempt_vectors=exempt_vectors,
        precision=setting.embedder.precision,
    )
    schedule = build_schedule(optimizer, options, steps_per_epoch=setting.batches_per_epoch)
    return TrainState(objective, optimizer, schedule, EmbeddingSpread(setting.network))


def restore(job: _Configured, run: RunDirectory, learner: TrainState) -> Progress | None:
    """Put the newest checkpoint of a run into `learner`; None when there is none yet.

    Raises:
        DistillError: A file of the checkpoint is missing or damaged, or it is of another run.
    """
    found = load_newest(run.checkpoints)
    if found is None:
        return None
    require_own_checkpoint(found.path, found.run, job.config)
    learner.load_state_dict(found.state, found.shards)
    progress = found.progress
    job.setting.images.bad_images.recall(progress.skipped)
    logger.info(f"continuing after step {progress.step}, {progress.epoch} epochs are complete")
    return progress


def fit_run(
    job: _Configured,
    run: RunDirectory,
    learner: TrainState,
    progress: Progress,
    batches: Callable[[Progress], Iterable[Batch]],
) -> str | None:
    """Train to the end of the run; return the signal that stopped it early, if any.

    Args:
        job: The prepared job.
        run: Its run directory.
        learner: What is trained.
        progress: Where the run stands.
        batches: Returns this rank's batches from a position to the end of the run.

    Raises:
        NonFiniteLossError: The loss or the weights are not finite; the last checkpoint is intact.
        DistillError: An image cannot be read, when that is to end the job; the disk refuses a
            checkpoint, likewise.
    """
    setting = job.setting
    check_holdout = _holdout_check(setting)
    log = RunLog(run.path, step=progress.step, num_bytes=progress.log_bytes)
    callbacks = CallbackList([log, *(job.callbacks if distributed.is_main() else ())])
    saver = Saver(job.config, run, learner)

    def save(score: float | None) -> None:
        _require_finite(learner, progress)
        progress.log_bytes = log.sync()
        setting.images.bad_images.share()
        progress.skipped = sorted(setting.images.bad_images.skipped)
        saver.save(progress, score)

    def on_epoch_end(epoch: int) -> dict[str, float]:
        setting.images.bad_images.share()
        return check_holdout(epoch) if distributed.is_main() else {}

    try:
        with require_resolved(learner.spread):
            return fit(
                learner,
                guarded_batches(lambda: batches(progress)),
                LoopSettings(
                    num_epochs=setting.num_epochs,
                    num_images=len(setting.images.trained),
                    batches_per_epoch=setting.batches_per_epoch,
                    log_every=setting.run.log_every,
                    clip_grad_norm=setting.optimization.clip_grad_norm,
                    accumulate=setting.accumulate,
                    checkpoint_every=setting.run.checkpoint_every,
                    seed=setting.run.seed,
                    num_workers=require_resolved(job.config.images.num_workers),
                ),
                progress,
                callbacks=callbacks,
                on_bad_images=setting.images.bad_images,
                on_epoch_end=on_epoch_end,
                save=save,
            )
    finally:
        log.close()


def add_metrics(job: _Configured, run: RunDirectory, metrics: Mapping[str, Any]) -> None:
    """Add numbers to metrics.json, and tell the callbacks; on the first rank."""
    run.add_metrics(dict(metrics))
    CallbackList(job.callbacks).on_evaluation(metrics)


def result_of(
    job: _Configured, run: RunDirectory, stopped_by: str | None, own_module: nn.Module | None = None
) -> RunResult:
    """Return what a run left behind, and tell the callbacks when it is complete."""
    result = RunResult(run.path, read_metrics(run.path), stopped_by, own_module)
    if stopped_by is None and distributed.is_main():
        CallbackList(job.callbacks).on_end(result.metrics)
    return result


def training_metrics(setting: TrainingSetting, progress: Progress) -> dict[str, Any]:
    """Return what a finished run says of itself: seconds, steps, images left out."""
    return {
        "train_seconds": round(progress.seconds, 1),
        "num_steps": progress.step,
        "num_skipped_images": len(setting.images.bad_images.skipped),
    }


def _holdout_check(setting: TrainingSetting) -> Callable[[int], dict[str, float]]:
    """Return what measures the network after an epoch, or a function that says nothing."""
    every, images = require_resolved(setting.run.nn_every), setting.images
    monitor = HoldoutMonitor(
        setting.embedder, images.trained, images.held_out, seed=setting.run.seed
    )
    unavailable_reason = "it is off (--nn-every 0)" if every == 0 else monitor.unavailable_reason()
    if unavailable_reason is not None:
        logger.info(f"no nearest-neighbor check between epochs: {unavailable_reason}")

    def check(epoch: int) -> dict[str, float]:
        if unavailable_reason is not None or (epoch < setting.num_epochs and epoch % every):
            return {}
        return {"holdout_nn_accuracy": monitor.accuracy(setting.network)}

    return check


def _require_finite(learner: TrainState, progress: Progress) -> None:
    if not all(torch.isfinite(parameter).all() for parameter in learner.objective.parameters()):
        raise NonFiniteLossError(
            f"the trained weights are not finite after step {progress.step}; no checkpoint was "
            "written. Lower --learning-rate, set --clip-grad-norm or use --precision fp32"
        )
