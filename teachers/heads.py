"""The multilayer perceptrons behind a backbone during pre-training; dropped afterwards.

Source: Lee et al., Compressive Visual Representations, NeurIPS 2021. Shapes: B rows, D width in,
P width out.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def mlp_head(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Build Linear, BatchNorm, ReLU, Linear, neither linear layer with a bias: B x D -> B x P."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, out_dim, bias=False),
    )


def directions(projections: Tensor) -> Tensor:
    """L2-normalize rows, in float32: B x P -> B x P."""
    return F.normalize(projections.float(), dim=1)
