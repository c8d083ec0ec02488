"""Joins the options of training with the baselines of `distill.losses`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from distill import distributed
from distill.anchors import AnchorQueue
from distill.embedding_cache import EmbeddingTable
from distill.engine.checkpoint import checkpoints
from distill.engine.imitation import Imitation
from distill.engine.resolve import given
from distill.engine.run_directory import RunDirectory
from distill.engine.teacher import Teacher
from distill.evaluation.kmeans import kmeans, nearest_centroids
from distill.jobs.prepare import QUEUE_DTYPES, Job
from distill.jobs.teacher_rows import embedded_images
from distill.losses.cc import CC, CCReleased
from distill.losses.clusterfit import ClusterFit
from distill.losses.crd import CRD
from distill.losses.imitation import ImitationLoss
from distill.losses.reg import Reg
from distill.losses.reg_bn import RegBN
from distill.losses.rkd import RKD
from distill.losses.seed import SEED
from distill.losses.simreg import SimReg
from distill.losses.sp import SP
from distill.losses.supervised import Supervised
from distill.methods import METHODS
from distill.terminal import say

_FAISS_SEEDS = 2**31


def build_imitation(
    job: Job, run: RunDirectory, teacher: Teacher | None, embeddings: Sequence[EmbeddingTable]
) -> Imitation:
    """Build the objective of a baseline, with random heads (torch's global seed).

    Args:
        job: The prepared job, of another method than compress.
        run: Its run directory.
        teacher: Of the job, None without one.
        embeddings: Of each of the teacher's views of the training images, where they are kept.
    """
    method, student_dim = job.config.method.method, job.setting.network.embedding_dim
    if method == "clusterfit":
        loss: ImitationLoss = _clusterfit(job, run, embeddings)
    elif method == "supervised":
        loss = Supervised(student_dim, _num_classes(job))
    else:
        loss = _BUILD[method](job, given(teacher).embedding_dim, student_dim)
    return Imitation(
        job.setting.network,
        teacher if METHODS.get(method).teacher == "every step" else None,
        loss,
        weight=given(job.config.baseline.loss_weight),
        device=job.setting.device,
        precision=job.setting.evaluator.precision,
    )


def _cc_released(job: Job, teacher_dim: int, student_dim: int) -> CCReleased:
    return CCReleased(teacher_dim, student_dim, head_dim=given(job.config.baseline.head_dim))


def _crd(job: Job, teacher_dim: int, student_dim: int) -> CRD:
    options = job.config.baseline
    return CRD(
        teacher_dim,
        student_dim,
        torch.from_numpy(job.setting.images.trained),
        head_dim=given(options.head_dim),
        num_negatives=given(options.num_negatives),
        temperature=given(job.config.method.temperature),
        momentum=given(options.memory_momentum),
        seed=job.config.run.seed,
    )


def _rkd(job: Job, teacher_dim: int, student_dim: int) -> RKD:
    options = job.config.baseline
    return RKD(
        distance_weight=given(options.distance_weight), angle_weight=given(options.angle_weight)
    )


def _seed(job: Job, teacher_dim: int, student_dim: int) -> SEED:
    options = job.config.method
    queue = AnchorQueue(
        given(options.queue_size),
        teacher_dim,
        dtype=QUEUE_DTYPES[options.queue_dtype],
        device=job.setting.device,
    )
    return SEED(
        queue,
        teacher_dim=teacher_dim,
        student_dim=student_dim,
        teacher_temperature=given(options.temperature),
        student_temperature=given(options.student_temperature),
        mask_self=options.mask_self,
    )


_BUILD: dict[str, Callable[[Job, int, int], ImitationLoss]] = {
    "reg": lambda job, teacher_dim, student_dim: Reg(teacher_dim, student_dim),
    "reg-bn": lambda job, teacher_dim, student_dim: RegBN(teacher_dim, student_dim),
    "simreg": lambda job, teacher_dim, student_dim: SimReg(teacher_dim, student_dim),
    "cc": lambda job, teacher_dim, student_dim: CC(),
    "cc-released": _cc_released,
    "crd": _crd,
    "rkd": _rkd,
    "sp": lambda job, teacher_dim, student_dim: SP(),
    "seed": _seed,
}


def _num_classes(job: Job) -> int:
    labels = job.setting.images.data.train.labels
    assert labels is not None, "prepare refuses images without labels"
    return int(labels.max()) + 1


def _clusterfit(job: Job, run: RunDirectory, embeddings: Sequence[EmbeddingTable]) -> ClusterFit:
    """Cluster what the teacher made of the images, unless a checkpoint holds the clusters."""
    cluster = torch.full((len(job.setting.images.data.train),), -1)
    is_kept = job.config.run.resume and bool(checkpoints(run.checkpoints))
    if not is_kept:
        trained = embedded_images(job, embeddings)
        cluster[trained] = torch.from_numpy(
            distributed.from_main(lambda: _clusters(job, embeddings[0], trained))
        )
    return ClusterFit(
        job.setting.network.embedding_dim,
        cluster,
        num_clusters=given(job.config.baseline.num_clusters),
    )


def _clusters(job: Job, table: EmbeddingTable, trained: np.ndarray) -> np.ndarray:
    """Return the cluster of every image of `trained`, int64."""
    number = given(job.config.baseline.num_clusters)
    say(f"clustering {len(trained):,} embeddings of the teacher into {number:,} clusters")
    features = table.rows(trained).numpy()
    # One start: ten, as evaluation makes, would take ten times as long with 16,000 clusters.
    centroids = kmeans(features, number, seed=job.config.run.seed % _FAISS_SEEDS, restarts=1)
    return nearest_centroids(features, centroids)
