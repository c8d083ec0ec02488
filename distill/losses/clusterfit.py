"""ClusterFit: the student classifies images into clusters of the teacher's embeddings.

Source: Yan, Misra, Gupta, Ghadiyaram, Mahajan, ClusterFit: Improving Generalization of Visual
Representations, CVPR 2020. K-means on the teacher's embeddings of the training images, before
training, gives every image a cluster; a linear layer after the student's embedding, dropped after
training, gives the logits; the loss is the mean of -log softmax(logits)[cluster], in nats.

Limit: the clusters stay as they were made.
Shapes: B rows of all ranks, Ds width, K clusters.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from distill import distributed
from distill.errors import DistillError
from distill.losses.base import (
    BaselineOptions,
    BuildContext,
    DistillationLoss,
    MemoryNeed,
    MethodFacts,
    check_counts,
    register_method,
    required,
)

logger = logging.getLogger(__name__)

PUBLISHED_NUM_CLUSTERS = 16_000
IMAGES_PER_CLUSTER = 80  # 16,000 clusters of ImageNet's 1.28 million images


@register_method(
    "clusterfit",
    summary="ClusterFit: classes are k-means clusters of the teacher's embeddings (CVPR 2020)",
    teacher="once",
)
class ClusterFit(DistillationLoss):
    """Cross-entropy of a linear classifier of clusters.

    Args:
        student_dim: Ds.
        cluster: int64, of every image by its position in the full training set; -1 for an image
            that has none and is not trained on.
        num_clusters: K.

    Raises:
        DistillError: A number below 1, or a cluster outside -1..K-1.

    Example:
        >>> clusters = torch.arange(100) % 5
        >>> loss = ClusterFit(4, clusters, num_clusters=5)
        >>> index = torch.tensor([3, 99])
        >>> loss(torch.empty(2, 0), torch.randn(2, 4), index).shape
        torch.Size([])
    """

    @dataclass(frozen=True)
    class Options(BaselineOptions):
        """Options of `clusterfit`."""

        num_clusters: Annotated[int, Ge(2)] | None = None
        """Clusters; None: one for 80 training images, from 2 to 16,000."""

    cluster: Tensor

    def __init__(self, student_dim: int, cluster: Tensor, *, num_clusters: int) -> None:
        super().__init__()
        check_counts(student_dim=student_dim, num_clusters=num_clusters)
        if len(cluster) and not -1 <= int(cluster.min()) <= int(cluster.max()) < num_clusters:
            raise DistillError(
                f"clusters go from {int(cluster.min())} to {int(cluster.max())}; allowed are 0 to "
                f"{num_clusters - 1}, and -1 for none"
            )
        self.head = nn.Linear(student_dim, num_clusters)
        self.register_buffer("cluster", cluster.to(torch.int64))

    @classmethod
    def resolve(cls, options: Options, facts: MethodFacts) -> Options:
        """Fill in the number of clusters; see `DistillationLoss`."""
        if options.num_clusters is not None:
            return options
        number = min(PUBLISHED_NUM_CLUSTERS, max(2, facts.num_images // IMAGES_PER_CLUSTER))
        return replace(options, num_clusters=number)

    @classmethod
    def require_possible(cls, options: Options, context: BuildContext) -> None:
        """Refuse more clusters than images; see `DistillationLoss`."""
        assert options.num_clusters is not None
        if options.num_clusters > len(context.images):
            raise DistillError(
                f"--num-clusters is {options.num_clusters}, it must be at most the number of "
                f"images that are trained on, {len(context.images)}"
            )

    @classmethod
    def memory_needed(cls, options: Options, context: BuildContext) -> MemoryNeed:
        """Return what clustering takes; see `DistillationLoss`."""
        number = len(context.images)
        # As read, normalized, and once more in k-means.
        num_bytes = 3 * number * context.teacher_dim * torch.float32.itemsize
        remedy = "use fewer images or a teacher with narrower embeddings"
        return MemoryNeed(num_bytes, f"clustering {number:,} embeddings", remedy, once=True)

    @classmethod
    def build(cls, options: Options, context: BuildContext) -> ClusterFit:
        """Cluster what the teacher made of the images, unless a checkpoint holds the clusters."""
        assert options.num_clusters is not None
        cluster = torch.full((context.num_positions,), -1)
        if not context.is_resumed:
            found = distributed.broadcast_from_rank0(lambda: _clusters(options, context))
            cluster[context.images] = torch.from_numpy(found)
        return cls(context.student_dim, cluster, num_clusters=options.num_clusters)

    def forward(
        self,
        teacher: Tensor,
        student: Tensor,
        index: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Return the loss; see `DistillationLoss`, of which teacher and label are not used."""
        return F.cross_entropy(
            self.head(student), self.cluster[required(index, "index", "clusterfit")]
        )


def _clusters(options: ClusterFit.Options, context: BuildContext) -> np.ndarray:
    """Return the cluster of every image that is trained on, int64 (N,)."""
    assert context.teacher_rows is not None
    assert context.kmeans is not None
    assert options.num_clusters is not None
    logger.info(
        f"clustering {len(context.images):,} embeddings of the teacher into "
        f"{options.num_clusters:,} clusters"
    )
    rows = context.teacher_rows.rows(context.images).numpy()
    return context.kmeans(rows, options.num_clusters)
