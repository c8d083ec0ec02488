"""Trains a student and measures it: teacher, queue, loop, evaluation, in this order.

Under several ranks each embeds its part of the training images with the teacher and keeps all of
the embeddings; the first rank measures while the others wait.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from distill import distributed
from distill.config import TrainConfig
from distill.engine.checkpoint import Progress
from distill.engine.log import say
from distill.engine.run_directory import RunDirectory, read_metrics
from distill.evaluation.embed import Embeddings, gather_embeddings
from distill.jobs.evaluator import Evaluator
from distill.jobs.fitting import RunResult, fit_run, run_job, training_metrics
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
    return run_job(config, prepare, _run)


def _run(job: Job, run: RunDirectory) -> RunResult:
    run.write_config(job.config, command="train")
    _announce(job, run.path)
    embeddings = _teacher_embeddings(job) if job.config.networks.teacher_view == "centre" else None
    if distributed.is_main():
        _measure_before(job, run, embeddings)
    learner, progress = build_learner(job, run, embeddings)
    batches = training_batches(job, progress, num_epochs=job.setting.num_epochs)
    stopped_by = fit_run(job.setting, run, learner, progress, batches)
    if stopped_by is None and distributed.is_main():
        _measure_after(job, run, progress)
    distributed.barrier()
    return RunResult(run.path, read_metrics(run.path), stopped_by)


def _announce(job: Job, output: Path) -> None:
    networks, setting = job.config.networks, job.setting
    millions = [num_parameters(network) / 1e6 for network in (job.teacher, setting.network)]
    say(
        f"teacher {networks.teacher} ({millions[0]:.1f} M parameters, {job.teacher.embedding_dim}"
        f"-d) -> student {networks.student} ({millions[1]:.1f} M, "
        f"{setting.network.embedding_dim}-d), {describe_setting(setting)}; run directory {output}"
    )


def _teacher_embeddings(job: Job) -> Embeddings:
    """Embed the training images with the teacher, every rank its part; return all embeddings."""
    evaluator, train = _of_teacher(job), job.setting.evaluator.train_index
    part = np.array_split(train, distributed.world_size())[distributed.rank()]
    images = job.setting.images.data.train
    mine = evaluator.embed(job.teacher, images, part, "teacher, train")
    job.setting.images.bad_images.share()
    return gather_embeddings(mine)


def _measure_before(job: Job, run: RunDirectory, embeddings: Embeddings | None) -> None:
    """Measure the teacher and the untrained student, unless metrics.json has them already.

    `embeddings` are the teacher's of the training images, where training looks them up.
    """
    of_student = job.setting.evaluator
    why_not = of_student.why_not()
    if why_not is not None:
        say(f"nearest neighbour and cluster alignment are skipped: {why_not}")
        return
    if "untrained_nn_accuracy" in read_metrics(run.path):
        return
    for prefix, what, evaluator, network, train in (
        ("teacher_", "teacher", _of_teacher(job), job.teacher, embeddings),
        ("untrained_", "untrained student", of_student, job.setting.network, None),
    ):
        found = evaluator.measure(network, what=what, train=train)
        run.add_metrics({prefix + name: value for name, value in found.items()})
        say(f"{what}: nearest neighbour {found['nn_accuracy']:.4f}")


def _of_teacher(job: Job) -> Evaluator:
    return replace(job.setting.evaluator, batch_size=job.config.networks.teacher_batch_size)


def _measure_after(job: Job, run: RunDirectory, progress: Progress) -> None:
    save_network(job.setting.network, run.student)
    metrics = training_metrics(job.setting, progress)
    evaluator = job.setting.evaluator
    if evaluator.why_not() is None:
        metrics |= evaluator.measure(job.setting.network, what="student")
    run.add_metrics(metrics)
