"""Trains a student and measures it: teacher, queue, loop, evaluation, in this order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from distill import distributed
from distill.config import TrainConfig
from distill.engine.checkpoint import Progress
from distill.engine.log import say
from distill.engine.resolve import given
from distill.engine.run_directory import RunDirectory, read_metrics
from distill.errors import DistillError
from distill.evaluation.embed import Embeddings
from distill.jobs.fitting import RunResult, fit_run
from distill.jobs.learner import build_learner, training_batches
from distill.jobs.prepare import Job, prepare
from distill.jobs.setting import describe_setting
from distill.networks import num_parameters
from distill.weights import save_network


def train(config: TrainConfig) -> RunResult:
    """Train a student as `config` says and measure it.

    Raises:
        DistillError: Anything about the request that cannot be met; nothing was written then.
        NonFiniteLossError: The loss is not finite; the last checkpoint is intact.
    """
    if distributed.launched_size() > 1:
        raise DistillError(
            "distillation runs in one process; start it without torchrun (only `distill pretrain` "
            "takes several)"
        )
    job = prepare(config)
    output = given(job.config.run.output)
    run = RunDirectory(output, resume=job.config.run.resume)
    try:
        run.write_config(job.config, command="train")
        _announce(job, output)
        embeddings = _measure_before(job, run)
        learner, progress = build_learner(job, run, embeddings)
        batches = training_batches(job, progress, num_epochs=job.setting.num_epochs)
        stopped_by = fit_run(job.setting, run, learner, progress, batches)
        if stopped_by is None:
            _measure_after(job, run, progress)
        return RunResult(output, read_metrics(output), stopped_by)
    finally:
        run.close()


def _announce(job: Job, output: Path) -> None:
    networks, setting = job.config.networks, job.setting
    millions = [num_parameters(network) / 1e6 for network in (job.teacher, setting.network)]
    say(
        f"teacher {networks.teacher} ({millions[0]:.1f} M parameters, {job.teacher.embedding_dim}"
        f"-d) -> student {networks.student} ({millions[1]:.1f} M, "
        f"{setting.network.embedding_dim}-d), {describe_setting(setting)}; run directory {output}"
    )


def _measure_before(job: Job, run: RunDirectory) -> Embeddings | None:
    """Embed the training images with the teacher; measure it and the untrained student.

    What metrics.json holds already is not measured again. Returns the teacher's embeddings when
    training looks them up, else None.
    """
    networks, known = job.config.networks, read_metrics(run.path)
    of_student = job.setting.evaluator
    of_teacher = replace(of_student, batch_size=networks.teacher_batch_size)
    why_not = of_student.why_not()
    if why_not is not None:
        say(f"nearest neighbour and cluster alignment are skipped: {why_not}")
    measured = why_not is not None or "untrained_nn_accuracy" in known
    cached = networks.teacher_view == "centre"
    embeddings = None
    if cached or not measured:
        embeddings = of_teacher.embed_train(job.teacher, what="teacher")
    if not measured:
        for prefix, evaluator, network, train_embeddings in (
            ("teacher_", of_teacher, job.teacher, embeddings),
            ("untrained_", of_student, job.setting.network, None),
        ):
            what = "teacher" if prefix == "teacher_" else "untrained student"
            found = evaluator.measure(network, what=what, train=train_embeddings)
            run.add_metrics({prefix + name: value for name, value in found.items()})
            say(f"{what}: nearest neighbour {found['nn_accuracy']:.4f}")
    return embeddings if cached else None


def _measure_after(job: Job, run: RunDirectory, progress: Progress) -> None:
    save_network(job.setting.network, run.student)
    metrics: dict[str, Any] = {
        "train_seconds": round(progress.seconds, 1),
        "num_steps": progress.step,
        "num_skipped_images": len(job.setting.images.bad_images.skipped),
    }
    evaluator = job.setting.evaluator
    if evaluator.why_not() is None:
        metrics |= evaluator.measure(job.setting.network, what="student")
    run.add_metrics(metrics)
