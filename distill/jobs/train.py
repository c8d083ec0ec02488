"""Trains a student and measures it: teacher, queue, loop, evaluation, in this order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distill.config import TrainConfig
from distill.engine.checkpoint import Progress, save_checkpoint
from distill.engine.log import RunLog, say
from distill.engine.loop import Learner, LoopSettings, fit
from distill.engine.resolve import given
from distill.engine.run_directory import RunDirectory, read_metrics
from distill.errors import NonFiniteLossError
from distill.evaluation.embed import Embeddings
from distill.jobs.learner import batches_per_epoch, build_learner, training_batches
from distill.jobs.monitor import HoldoutMonitor
from distill.jobs.prepare import Job, prepare
from distill.networks import num_parameters
from distill.weights import save_network


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Attributes:
        output: The run directory.
        metrics: The content of its metrics.json.
        stopped_by: Name of the signal that ended it early, None when it is complete.
    """

    output: Path
    metrics: dict[str, Any]
    stopped_by: str | None


def train(config: TrainConfig) -> TrainResult:
    """Train a student as `config` says and measure it.

    Raises:
        DistillError: Anything about the request that cannot be met; nothing was written then.
        NonFiniteLossError: The loss is not finite; the last checkpoint is intact.
    """
    job = prepare(config)
    output = given(job.config.run.output)
    run = RunDirectory(output, resume=job.config.run.resume)
    try:
        run.write_config(job.config)
        _announce(job, output)
        embeddings = _measure_before(job, run)
        learner, progress = build_learner(job, run, embeddings)
        stopped_by = _fit(job, run, learner, progress)
        if stopped_by is None:
            _measure_after(job, run, progress)
        return TrainResult(output, read_metrics(output), stopped_by)
    finally:
        run.close()


def _announce(job: Job, output: Path) -> None:
    networks, data = job.config.networks, job.evaluator.data
    millions = [num_parameters(network) / 1e6 for network in (job.teacher, job.student)]
    say(
        f"teacher {networks.teacher} ({millions[0]:.1f} M parameters, {job.teacher.embedding_dim}"
        f"-d) -> student {networks.student} ({millions[1]:.1f} M, {job.student.embedding_dim}-d), "
        f"{len(job.trained):,} images of {data.name} and {len(job.held_out):,} held out, on "
        f"{job.device} in {job.evaluator.precision}; run directory {output}"
    )


def _measure_before(job: Job, run: RunDirectory) -> Embeddings | None:
    """Embed the training images with the teacher; measure it and the untrained student.

    What metrics.json holds already is not measured again. Returns the teacher's embeddings when
    training looks them up, else None.
    """
    networks, known = job.config.networks, read_metrics(run.path)
    of_student = job.evaluator
    of_teacher = replace(of_student, batch_size=networks.teacher_batch_size)
    why_not = of_student.why_not()
    if why_not is not None:
        say(f"nearest-neighbour accuracy is skipped: {why_not}")
    measured = why_not is not None or "untrained_nn_accuracy" in known
    cached = networks.teacher_view == "centre"
    embeddings = None
    if cached or not measured:
        embeddings = of_teacher.embed_train(job.teacher, what="teacher")
    if not measured:
        teacher = of_teacher.nn_accuracy(job.teacher, what="teacher", train=embeddings)
        untrained = of_student.nn_accuracy(job.student, what="untrained student")
        run.add_metrics({"teacher_nn_accuracy": teacher, "untrained_nn_accuracy": untrained})
        say(f"nearest neighbour before training: teacher {teacher:.4f}, student {untrained:.4f}")
    return embeddings if cached else None


def _fit(job: Job, run: RunDirectory, learner: Learner, progress: Progress) -> str | None:
    optimization, rhythm = job.config.optimization, job.config.run
    num_epochs = given(optimization.epochs)
    check_holdout = _holdout_check(job)
    log = RunLog(run.path, step=progress.step)

    def save() -> None:
        _require_finite(learner, progress)
        save_checkpoint(run.checkpoints, progress, learner.state_dict())

    def on_epoch_end(epoch: int) -> dict[str, float]:
        values = check_holdout(epoch)
        if epoch == num_epochs or epoch % rhythm.checkpoint_every == 0:
            save()
        return values

    try:
        return fit(
            learner,
            training_batches(job, progress, num_epochs=num_epochs),
            LoopSettings(
                num_epochs=num_epochs,
                num_images=len(job.trained),
                batches_per_epoch=batches_per_epoch(job),
                log_every=rhythm.log_every,
                clip_grad_norm=optimization.clip_grad_norm,
            ),
            progress,
            log=log,
            on_bad_images=job.bad_images,
            on_epoch_end=on_epoch_end,
            save=save,
        )
    finally:
        log.close()


def _holdout_check(job: Job) -> Callable[[int], dict[str, float]]:
    """Return what measures the student after an epoch, or a function that says nothing."""
    num_epochs, every = given(job.config.optimization.epochs), given(job.config.run.nn_every)
    monitor = HoldoutMonitor(job.evaluator, job.trained, job.held_out, seed=job.config.run.seed)
    why_not = "it is off (--nn-every 0)" if every == 0 else monitor.why_not()
    if why_not is not None:
        say(f"no nearest-neighbour check between epochs: {why_not}")

    def check(epoch: int) -> dict[str, float]:
        if why_not is not None or (epoch < num_epochs and epoch % every):
            return {}
        return {"holdout_nn_accuracy": monitor.accuracy(job.student)}

    return check


def _require_finite(learner: Learner, progress: Progress) -> None:
    if not all(torch.isfinite(parameter).all() for parameter in learner.objective.parameters()):
        raise NonFiniteLossError(
            f"the student's weights are not finite after step {progress.step}; no checkpoint was "
            "written. Lower --learning-rate, set --clip-grad-norm or use --precision fp32"
        )


def _measure_after(job: Job, run: RunDirectory, progress: Progress) -> None:
    save_network(job.student, run.student)
    metrics: dict[str, Any] = {
        "train_seconds": round(progress.seconds, 1),
        "num_steps": progress.step,
        "num_skipped_images": len(job.bad_images.skipped),
    }
    if job.evaluator.why_not() is None:
        metrics["nn_accuracy"] = job.evaluator.nn_accuracy(job.student, what="student")
    run.add_metrics(metrics)
