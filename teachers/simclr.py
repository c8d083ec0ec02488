"""SimCLR: two views of an image find each other among all views of a batch.

Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML
2020, eq. 1, with the head of Lee et al., NeurIPS 2021. Negatives come from the global batch: ranks
gather each other's embeddings.

Shapes: B images of this rank, N of all ranks, P width of the projection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from distill import distributed
from distill.config import Concentration
from teachers.pretraining import (
    HeadOptions,
    LossOutput,
    PretrainMethod,
    directions,
    mlp_head,
    register_pretrain_method,
)


@register_pretrain_method("simclr")
class SimCLR(PretrainMethod):
    """The contrastive loss of two views.

    Args:
        embedding_dim: Width of the backbone's embedding.
        hidden_dim: Hidden width of the head.
        projection_dim: Output width of the head, P.
        temperature: > 0; divides the cosines.
    """

    @dataclass(frozen=True)
    class Options(HeadOptions):
        """SimCLR: two views of an image, contrasted with all others of a batch."""

        kappa_b: Concentration = 10.0
        """1 / temperature."""

    def __init__(
        self,
        embedding_dim: int,
        *,
        hidden_dim: int = 4096,
        projection_dim: int = 256,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.head = mlp_head(embedding_dim, hidden_dim, projection_dim)
        self.temperature = temperature

    @classmethod
    def build(cls, options: Options, embedding_dim: int) -> SimCLR:
        """Build it; see `PretrainMethod`."""
        return cls(
            embedding_dim,
            hidden_dim=options.hidden_dim,
            projection_dim=options.projection_dim,
            temperature=1 / options.kappa_b,
        )

    def forward(self, hidden: Tensor, target: Tensor | None = None, **_: object) -> LossOutput:
        """Return the loss of a batch; see `PretrainMethod`."""
        return simclr_loss(hidden, temperature=self.temperature)

    def projection(self, hidden: Tensor) -> Tensor:
        """Return the unit vectors that the loss compares; see `PretrainMethod`."""
        return directions(hidden)


def simclr_loss(hidden: Tensor, *, temperature: float) -> LossOutput:
    """Return the mean over images of both directions' cross-entropies, summed.

    Args:
        hidden: 2B x P, need not be unit: all first views, then all second views.
        temperature: > 0.
    """
    x, y = directions(hidden).chunk(2)
    all_x, all_y = distributed.all_gather(x), distributed.all_gather(y)
    to_y = contrast(x @ all_y.T / temperature, x @ all_x.T / temperature)
    to_x = contrast(y @ all_x.T / temperature, y @ all_y.T / temperature)
    most = math.log(2 * len(all_x) - 1)
    logged = {"i_y_zx": most - to_y.detach(), "i_x_zy": most - to_x.detach()}
    return LossOutput(to_y + to_x, logged)


def contrast(across: Tensor, within: Tensor) -> Tensor:
    """Return the mean cross-entropy of finding the other view of the same image.

    Args:
        across: Logits against the other views of all images, B x N.
        within: Logits against the same views of all images, B x N; an image's own is left out.

    Returns:
        0-d, nats.
    """
    num_rows = len(across)
    positives = torch.arange(num_rows, device=across.device) + distributed.rank() * num_rows
    own = F.one_hot(positives, across.shape[1]).bool()
    logits = torch.cat([across, within.masked_fill(own, -torch.inf)], dim=1)
    return F.cross_entropy(logits, positives)
