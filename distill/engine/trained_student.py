"""The student while it is trained: through its projection, over all ranks, in its precision."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from distill import distributed
from distill.data.views import Batch
from distill.engine import device as devices
from distill.engine.batch_norm import synchronize_batch_norm
from distill.networks import EmbeddingNetwork


class TrainedStudent:
    """A student with synchronized BatchNorm, its gradients averaged over the ranks.

    Args:
        student: The network that is trained, on `device`.
        projection: Layer after the student during training, or None.
        device: Where both lie.
        precision: `fp32` or `bf16`, of `autocast`.

    Attributes:
        network: Student and projection.
        parallel: The same, to be called where a backward pass follows. Only once it is made have
            all ranks the first one's weights.
    """

    def __init__(
        self,
        student: EmbeddingNetwork,
        *,
        projection: nn.Module | None = None,
        device: torch.device,
        precision: str,
    ) -> None:
        self.network = nn.Sequential(student, projection or nn.Identity()).to(device)
        synchronize_batch_norm(self.network, device)
        self.parallel = distributed.data_parallel(self.network, device)
        self.image_size = student.input.image_size
        self.device = device
        self.precision = precision

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of the student's passes."""
        return devices.autocast(self.device, self.precision)

    def views(self, batch: Batch) -> Tensor:
        """Return the student's views; without images there are none, of the usual size."""
        if len(batch.index) == 0:
            side = self.image_size
            return batch.view.new_empty(0, 3, side, side, device=self.device)
        return batch.view.to(self.device, non_blocking=True)
