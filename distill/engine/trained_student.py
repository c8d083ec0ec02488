"""The student while it is trained: through its projection, over all ranks, in its precision."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from distill import distributed
from distill.data.views import Batch
from distill.engine import device as devices
from distill.engine.batch_norm import synchronize_batch_norm
from distill.engine.every_view import EveryView
from distill.networks import EmbeddingNetwork


class TrainedStudent:
    """A student with synchronized BatchNorm, its gradients averaged over the ranks.

    Args:
        student: The network that is trained, on `device`.
        projection: Layers after the student during training (`distill.engine.predictor`), or None.
        view_sizes: Side in pixels of every view of an image; None for one view of the usual size.
        device: Where both lie.
        precision: `fp32` or `bf16`, of `autocast`.

    Attributes:
        network: Student and projection.
        parallel: The same over all views (`EveryView`), to be called where a backward pass follows.
            Only once it is made have all ranks the first one's weights.
    """

    def __init__(
        self,
        student: EmbeddingNetwork,
        *,
        projection: nn.Module | None = None,
        view_sizes: Sequence[int] | None = None,
        device: torch.device,
        precision: str,
    ) -> None:
        self.network = nn.Sequential(student, projection or nn.Identity()).to(device)
        synchronize_batch_norm(self.network, device)
        self.parallel = distributed.data_parallel(EveryView(self.network), device)
        self.view_sizes = view_sizes or (student.input.image_size,)
        self.device = device
        self.precision = precision

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of the student's passes."""
        return devices.autocast(self.device, self.precision)

    def views(self, batch: Batch) -> list[Tensor]:
        """Return the student's views; without images they have no rows, and the usual sizes."""
        if len(batch.index) == 0:
            shapes = [(0, 3, side, side) for side in self.view_sizes]
            return [batch.view.new_empty(shape, device=self.device) for shape in shapes]
        views = [batch.view, *batch.further_views]
        return [view.to(self.device, non_blocking=True) for view in views]
