"""What every self-supervised method returns for a batch.

The multilayer perceptrons behind a backbone during pre-training; dropped afterwards.

Source: Lee et al., Compressive Visual Representations, NeurIPS 2021. Shapes: B rows, D width in,
P width out.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F


class Outcome(NamedTuple):
    """The loss of a batch and what users read beside it.

    Attributes:
        loss: 0-d, with gradient. Under several ranks that of this rank's rows; the mean over ranks
            is the loss of the global batch.
        logged: 0-d tensors without gradient by name, in nats except `byol_loss`. `i_xzx_y` is the
            residual information I(X;Z|Y) and `i_y_zx` the bound on I(Y;Z), of the first direction;
            `i_yzy_x` and `i_x_zy` of the second; `h_e_zx_x` = -log e and `h_b_zx_y` = -log b.
    """

    loss: Tensor
    logged: dict[str, Tensor]


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
