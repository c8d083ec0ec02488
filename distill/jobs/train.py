"""Trains a student and measures it: teacher, queue, loop, evaluation, in this order.

Under several ranks each embeds its part of the images with the teacher, and all look the embeddings
up in the same files; the first rank measures while the others wait.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from distill import distributed
from distill.config import TrainConfig
from distill.engine.checkpoint import Progress
from distill.engine.run_directory import RunDirectory, read_metrics
from distill.jobs.baselines import measure_before, teacher_embeddings
from distill.jobs.fitting import RunResult, fit_run, run_job, training_metrics, write_config
from distill.jobs.initialization import initialize_student
from distill.jobs.learner import build_learner, training_batches
from distill.jobs.prepare import Job, prepare
from distill.jobs.setting import describe_setting
from distill.networks import EmbeddingNetwork, num_parameters
from distill.terminal import say
from distill.weights import save_network


def train(config: TrainConfig) -> RunResult:
    """Train a student as `config` says and measure it.

    Raises:
        DistillError: Anything about the request that cannot be met; nothing was written then.
        NonFiniteLossError: The loss is not finite; the last checkpoint is intact.
    """
    return run_job(config, prepare, _run)


def _run(job: Job, run: RunDirectory) -> RunResult:
    _announce(job, run.path)
    # Before the configuration: what cannot be kept ends the run while there is none to resume.
    embeddings = teacher_embeddings(job, run)
    write_config(job, run, command="train")
    if distributed.is_main():
        measure_before(job, run, embeddings)
    if job.config.networks.student_init == "scaled":
        initialize_student(job.setting)
    learner, progress = build_learner(job, run, embeddings.views if embeddings else ())
    batches = partial(training_batches, job, num_epochs=job.setting.num_epochs)
    stopped_by = fit_run(job, run, learner, progress, batches)
    if stopped_by is None and distributed.is_main():
        _measure_after(job, run, progress)
    distributed.barrier()
    return RunResult(run.path, read_metrics(run.path), stopped_by)


def _announce(job: Job, output: Path) -> None:
    networks, setting, method = job.config.networks, job.setting, job.config.method.method
    words = f"student {networks.student} ({_millions(setting.network)} M"
    if job.teacher is not None:
        words = (
            f"teacher {networks.teacher} ({_millions(job.teacher)} M parameters, "
            f"{job.teacher.embedding_dim}-d) -> {words}"
        )
    say(
        f"{'' if method == 'compress' else f'{method}: '}{words}, "
        f"{setting.network.embedding_dim}-d), {describe_setting(setting)}; run directory {output}"
    )


def _millions(network: EmbeddingNetwork) -> str:
    return f"{num_parameters(network) / 1e6:.1f}"


def _measure_after(job: Job, run: RunDirectory, progress: Progress) -> None:
    save_network(job.setting.network, run.student)
    metrics = training_metrics(job.setting, progress)
    evaluator = job.setting.evaluator
    if evaluator.why_not() is None and job.config.run.measure != "none":
        metrics |= evaluator.measure(job.setting.network, what="student")
    run.add_metrics(metrics)
