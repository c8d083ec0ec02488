"""Runs the training loop of a job: restore, log, check between epochs, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill import distributed
from distill.data.views import Batch
from distill.engine.checkpoint import Progress, load_newest, save_checkpoint
from distill.engine.log import RunLog, say
from distill.engine.loop import Learner, LoopSettings, fit
from distill.engine.objective import Objective
from distill.engine.optimizer import build_optimizer, build_schedule
from distill.engine.resolve import given
from distill.engine.run_directory import RunDirectory
from distill.errors import NonFiniteLossError
from distill.jobs.monitor import HoldoutMonitor
from distill.jobs.setting import TrainingSetting


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
    optimizer = build_optimizer(objective.parameters(), options, exempt_vectors=exempt_vectors)
    schedule = build_schedule(optimizer, options, steps_per_epoch=setting.batches_per_epoch)
    return Learner(objective, optimizer, schedule)


def restore(run: RunDirectory, learner: Learner) -> Progress | None:
    """Put the newest checkpoint of a run into `learner`; None when there is none yet.

    Raises:
        DistillError: The checkpoint is damaged.
    """
    restored = load_newest(run.checkpoints)
    if restored is None:
        return None
    progress, state = restored
    learner.load_state_dict(state)
    say(f"continuing after step {progress.step}, {progress.epoch} epochs are complete")
    return progress


def fit_run(
    setting: TrainingSetting,
    run: RunDirectory,
    learner: Learner,
    progress: Progress,
    batches: Iterable[Batch],
) -> str | None:
    """Train to the end of the run; return the signal that stopped it early, if any.

    Raises:
        NonFiniteLossError: The loss or the weights are not finite; the last checkpoint is intact.
        DistillError: An image cannot be read, when that is to end the job.
    """
    check_holdout = _holdout_check(setting)
    log = RunLog(run.path, step=progress.step)

    def save() -> None:
        _require_finite(learner, progress)
        if distributed.is_main():
            save_checkpoint(run.checkpoints, progress, learner.state_dict())

    def on_epoch_end(epoch: int) -> dict[str, float]:
        values = check_holdout(epoch) if distributed.is_main() else {}
        if epoch == setting.num_epochs or epoch % setting.run.checkpoint_every == 0:
            save()
        return values

    try:
        return fit(
            learner,
            batches,
            LoopSettings(
                num_epochs=setting.num_epochs,
                num_images=len(setting.images.trained),
                batches_per_epoch=setting.batches_per_epoch,
                log_every=setting.run.log_every,
                clip_grad_norm=setting.optimization.clip_grad_norm,
                accumulate=setting.accumulate,
            ),
            progress,
            log=log,
            on_bad_images=setting.images.bad_images,
            on_epoch_end=on_epoch_end,
            save=save,
        )
    finally:
        log.close()


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
