"""C-SimCLR: SimCLR with explicit compression by the Conditional Entropy Bottleneck.

Source: Lee et al., Compressive Visual Representations, NeurIPS 2021, section 2. The projections of
the views are mean directions of von Mises-Fisher distributions: z_x ~ e(.|x) = vMF(mu_x, kappa_e)
is what contrast sees, b(.|y) = vMF(mu_y, kappa_b) what can be foretold of it from the other view.
The loss is beta I(X;Z|Y) - I(Y;Z), both directions summed, with the bounds
I(X;Z|Y) <= E[log e - log b] and I(Y;Z) >= log(2N - 1) + E[log softmax]. kappa_b is the inverse of
SimCLR's temperature: at beta = 0 and z_x = mu_x this is SimCLR up to a constant.

Shapes: B images of this rank, N of all ranks, P width of the projection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distill import distributed
from distill.config import Concentration
from distill.losses.von_mises_fisher import (
    check_kappa,
    log_density,
    log_density_of_cosine,
    sample,
)
from teachers.pretraining import (
    CompressionOptions,
    HeadOptions,
    LossOutput,
    PretrainMethod,
    directions,
    mlp_head,
    register_pretrain_method,
)
from teachers.simclr import contrast


@register_pretrain_method("c-simclr")
class CSimCLR(PretrainMethod):
    """The contrastive loss of two views with a price on residual information.

    Args:
        embedding_dim: Width of the backbone's embedding.
        hidden_dim: Hidden width of the head.
        projection_dim: Output width of the head, P.
        kappa_e: Concentration of the forward encoder, > 0.
        kappa_b: Concentration of the backward encoder, > 0.

    Raises:
        DistillError: A concentration is not positive and finite.
    """

    @dataclass(frozen=True)
    class Options(CompressionOptions, HeadOptions):
        """C-SimCLR: SimCLR with a price on residual information."""

        kappa_e: Concentration = 1024.0
        """Concentration of the forward encoder e(z|x)."""

    def __init__(
        self,
        embedding_dim: int,
        *,
        hidden_dim: int = 4096,
        projection_dim: int = 256,
        kappa_e: float = 1024.0,
        kappa_b: float = 10.0,
    ) -> None:
        super().__init__()
        check_kappa("kappa_e", kappa_e)
        check_kappa("kappa_b", kappa_b)
        self.head = mlp_head(embedding_dim, hidden_dim, projection_dim)
        self.kappa_e, self.kappa_b = kappa_e, kappa_b

    @classmethod
    def build(cls, options: Options, embedding_dim: int) -> CSimCLR:
        """Build it; see `PretrainMethod`."""
        return cls(
            embedding_dim,
            hidden_dim=options.hidden_dim,
            projection_dim=options.projection_dim,
            kappa_e=options.kappa_e,
            kappa_b=options.kappa_b,
        )

    def forward(
        self,
        hidden: Tensor,
        target: Tensor | None = None,
        *,
        beta: float | None = None,
        generator: torch.Generator | None = None,
    ) -> LossOutput:
        """Return the loss of a batch; see `PretrainMethod`."""
        beta = 1.0 if beta is None else beta
        mu = directions(hidden)
        z = sample(mu, self.kappa_e, generator=generator)
        return c_simclr_loss(mu, z, kappa_e=self.kappa_e, kappa_b=self.kappa_b, beta=beta)

    def projection(self, hidden: Tensor) -> Tensor:
        """Return the mean directions mu, B x P, from what the head says."""
        return directions(hidden)


def c_simclr_loss(
    mu: Tensor, z: Tensor, *, kappa_e: float, kappa_b: float, beta: float
) -> LossOutput:
    """Return mean(beta * residual - information), both directions summed.

    Args:
        mu: Mean directions, unit, 2B x P: all first views, then all second views.
        z: Samples around them, unit, 2B x P.
        kappa_e: Concentration of the forward encoder.
        kappa_b: Concentration of the backward encoder.
        beta: Weight of the residual information.
    """
    (mu_x, mu_y), (z_x, z_y) = mu.chunk(2), z.chunk(2)
    all_x, all_y = distributed.all_gather(mu_x), distributed.all_gather(mu_y)
    kappas = {"kappa_e": kappa_e, "kappa_b": kappa_b}
    log_e, log_b, i_y_zx = _direction(z_x, mu_x, mu_y, all_x, all_y, **kappas)
    log_e_y, log_b_y, i_x_zy = _direction(z_y, mu_y, mu_x, all_y, all_x, **kappas)
    i_xzx_y, i_yzy_x = log_e - log_b, log_e_y - log_b_y
    loss = beta * (i_xzx_y + i_yzy_x) - i_y_zx - i_x_zy
    logged = {
        "i_xzx_y": i_xzx_y,
        "i_y_zx": i_y_zx,
        "i_yzy_x": i_yzy_x,
        "i_x_zy": i_x_zy,
        "h_e_zx_x": -log_e,
        "h_b_zx_y": -log_b,
    }
    return LossOutput(loss, {name: value.detach() for name, value in logged.items()})


def _direction(
    z: Tensor,
    mu: Tensor,
    mu_other: Tensor,
    all_same: Tensor,
    all_other: Tensor,
    *,
    kappa_e: float,
    kappa_b: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the batch means of log e, of log b and of the bound on I(Y;Z)."""
    dim = z.shape[1]
    log_e = log_density(z, mu, kappa_e).mean()
    log_b = log_density(z, mu_other, kappa_b).mean()
    across = log_density_of_cosine(z @ all_other.T, dim, kappa_b)
    within = log_density_of_cosine(z @ all_same.T, dim, kappa_b)
    return log_e, log_b, math.log(2 * len(all_same) - 1) - contrast(across, within)
