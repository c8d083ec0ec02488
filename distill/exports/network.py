"""The network as it is exported: pixels in, embeddings out, everything between them included.

Shapes: B batch, S image side, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.models.networks import EmbeddingNetwork

INPUT, OUTPUT = "pixels", "embeddings"
Embed = Callable[[Tensor], Tensor]  # float32 (B, 3, S, S) in [0, 1] -> float32 (B, D)


class ExportedNetwork(nn.Module):
    """An embedding network in evaluation mode, its normalization of pixels included.

    Args:
        network: The trained network; put into evaluation mode.
        l2_normalize: Whether embeddings are divided by their length.
    """

    def __init__(self, network: EmbeddingNetwork, *, l2_normalize: bool) -> None:
        super().__init__()
        self.network = network
        self.l2_normalize = l2_normalize
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed images.

        Args:
            pixels: float32 (B, 3, S, S), RGB in [0, 1], not normalized.

        Returns:
            float32 (B, D); rows of length 1 where that was asked for (a row of zeros stays one).
        """
        embeddings = self.network(pixels)
        return F.normalize(embeddings, dim=1) if self.l2_normalize else embeddings

    def example(self) -> Tensor:
        """Return two black images to trace with: one image would fix the batch at 1."""
        side = self.network.input.image_size
        return torch.zeros(2, 3, side, side)


def without_gradient(network: nn.Module) -> Embed:
    """Return the function that `network` computes, for those who only want its numbers."""

    @torch.no_grad()
    def embed(pixels: Tensor) -> Tensor:
        return network(pixels)

    return embed
