"""Runs a training job, in one process or several: restore, loop, log, checks, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from distill import distributed
from distill.data.lasting_batches import lasting_batches
from distill.data.sources import fingerprints
from distill.data.views import Batch
from distill.engine.checkpoint import Progress, load_newest
from distill.engine.device import make_deterministic, pick_device
from distill.engine.freed_memory import keep_freed_memory
from distill.engine.log import RunLog
from distill.engine.loop import Learner, LoopSettings, fit
from distill.engine.objective import Objective
from distill.engine.optimizer import build_optimizer, build_schedule
from distill.engine.resolve import given
from distill.engine.run_directory import RunDirectory
from distill.engine.spread import EmbeddingSpread
from distill.errors import NonFiniteLossError
from distill.jobs.configure import Config, require_own_checkpoint
from distill.jobs.monitor import HoldoutMonitor
from distill.jobs.saving import Saver
from distill.jobs.setting import TrainingSetting
from distill.terminal import say


class _Configured(Protocol):
    @property
    def config(self) -> Any: ...

    @property
    def setting(self) -> TrainingSetting: ...


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
        run = RunDirectory(given(job.config.run.output), resume=job.config.run.resume)
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
    setting: TrainingSetting, objective: Objective, *, exempt_vectors: bool = False
) -> Learner:
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
        precision=setting.evaluator.precision,
    )
    schedule = build_schedule(optimizer, options, steps_per_epoch=setting.batches_per_epoch)
    return Learner(objective, optimizer, schedule, EmbeddingSpread(setting.network))


def restore(job: _Configured, run: RunDirectory, learner: Learner) -> Progress | None:
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
    say(f"continuing after step {progress.step}, {progress.epoch} epochs are complete")
    return progress


def fit_run(
    job: _Configured,
    run: RunDirectory,
    learner: Learner,
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
        with given(learner.spread):
            return fit(
                learner,
                lasting_batches(lambda _: batches(progress)),
                LoopSettings(
                    num_epochs=setting.num_epochs,
                    num_images=len(setting.images.trained),
                    batches_per_epoch=setting.batches_per_epoch,
                    log_every=setting.run.log_every,
                    clip_grad_norm=setting.optimization.clip_grad_norm,
                    accumulate=setting.accumulate,
                    checkpoint_every=setting.run.checkpoint_every,
                    seed=setting.run.seed,
                    num_workers=given(job.config.images.num_workers),
                ),
                progress,
                log=log,
                on_bad_images=setting.images.bad_images,
                on_epoch_end=on_epoch_end,
                save=save,
            )
    finally:
        log.close()


def training_metrics(setting: TrainingSetting, progress: Progress) -> dict[str, Any]:
    """Return what a finished run says of itself: seconds, steps, images left out."""
    return {
        "train_seconds": round(progress.seconds, 1),
        "num_steps": progress.step,
        "num_skipped_images": len(setting.images.bad_images.skipped),
    }


def _holdout_check(setting: TrainingSetting) -> Callable[[int], dict[str, float]]:
    """Return what measures the network after an epoch, or a function that says nothing."""
    every, images = given(setting.run.nn_every), setting.images
    monitor = HoldoutMonitor(
        setting.evaluator, images.trained, images.held_out, seed=setting.run.seed
    )
    why_not = "it is off (--nn-every 0)" if every == 0 else monitor.why_not()
    if why_not is not None:
        say(f"no nearest-neighbour check between epochs: {why_not}")

    def check(epoch: int) -> dict[str, float]:
        if why_not is not None or (epoch < setting.num_epochs and epoch % every):
            return {}
        return {"holdout_nn_accuracy": monitor.accuracy(setting.network)}

    return check


def _require_finite(learner: Learner, progress: Progress) -> None:
    if not all(torch.isfinite(parameter).all() for parameter in learner.objective.parameters()):
        raise NonFiniteLossError(
            f"the trained weights are not finite after step {progress.step}; no checkpoint was "
            "written. Lower --learning-rate, set --clip-grad-norm or use --precision fp32"
        )
