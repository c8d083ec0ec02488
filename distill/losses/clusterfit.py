"""ClusterFit: the student classifies images into clusters of the teacher's embeddings.

Source: Yan, Misra, Gupta, Ghadiyaram, Mahajan, ClusterFit: Improving Generalization of Visual
Representations, CVPR 2020. K-means on the teacher's embeddings of the training images, before
training, gives every image a cluster; a linear layer after the student's embedding, dropped after
training, gives the logits; the loss is the mean of -log softmax(logits)[cluster], in nats.

Limits: the clusters stay as they were made; where images are clustered is the caller's business.
Shapes: B rows of all ranks, Ds width, K clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import DistillError
from distill.losses.base import DistillationLoss, check_counts


class ClusterFit(DistillationLoss):
    """Cross-entropy of a linear classifier of clusters.

    Args:
        student_dim: Ds.
        cluster: int64, of every image by its position in the full training set; -1 for an image
            that has none and is not trained on.
        num_clusters: K.

    Raises:
        DistillError: A number below 1, or a cluster outside -1..K-1.
    """

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

    def forward(self, teacher: Tensor, student: Tensor, index: Tensor, label: Tensor) -> Tensor:
        """Return the loss; see `DistillationLoss`, of which teacher and label are not used."""
        return F.cross_entropy(self.head(student), self.cluster[index])
