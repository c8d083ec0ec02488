"""A network over several views of each image, in as many passes as the views have sizes.

Source: Caron et al., SwAV, NeurIPS 2020 (multi-crop). Views of one size share a pass and with it
the statistics of BatchNorm; the first view's size comes last, so that its statistics weigh most in
the running averages.

Shapes: V views, b images of this rank, S side of a view, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class EveryView(nn.Module):
    """Embeds all views within one call, as DistributedDataParallel wants of a step.

    Args:
        network: Embeds images, (B, 3, S, S) -> (B, D), of every size that comes.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the embeddings (b, D) of each view, in their order; `views` are (b, 3, S, S)."""
        embeddings: dict[int, Tensor] = {}
        sizes = list(dict.fromkeys(view.shape[-1] for view in views))
        for size in reversed(sizes):
            chosen = [number for number, view in enumerate(views) if view.shape[-1] == size]
            together = views[chosen[0]]
            if len(chosen) > 1:
                together = torch.cat([views[number] for number in chosen])
            found = self.network(together)
            embeddings |= dict(zip(chosen, found.chunk(len(chosen)), strict=True))
        return tuple(embeddings[number] for number in range(len(views)))
