"""C-BYOL: BYOL with explicit compression by the Conditional Entropy Bottleneck.

Source: Lee et al., Compressive Visual Representations, NeurIPS 2021, section 2. A projector turns
what the online head says into the mean direction mu of the forward encoder e(z|x) = vMF(mu,
kappa_e); the prediction is linear in a sample z of it. The backward encoder b(z|.) = vMF(m(t),
kappa_b) is foretold from the target t by an MLP m of its own, which is trained. The loss is
w (|y1 - t2|^2 + |y2 - t1|^2) + beta (residual_1 + residual_2), residual = log e - log b.

Of which view the target for b is: `cross-view`, the default, takes the other view's, so that the
residual bounds I(X;Z|Y) as the method states it; `same-view` takes that of z's own view, which is
what the released program did (the published figures are of it).

Shapes: B images, P width of the projection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from distill import distributed
from distill.config import Concentration
from distill.losses.von_mises_fisher import (
    check_kappa,
    log_density,
    log_density_of_cosine,
    sample,
)
from teachers.byol import regression
from teachers.pretraining import (
    CompressionOptions,
    HeadOptions,
    LossOutput,
    PretrainMethod,
    TargetOptions,
    directions,
    mlp_head,
    register_pretrain_method,
)
from teachers.simclr import contrast


@register_pretrain_method("c-byol")
class CBYOL(PretrainMethod):
    """The regression of two views on each other's target with a price on residual information.

    Args:
        embedding_dim: Width of the backbone's embedding.
        hidden_dim: Hidden width of the heads.
        projection_dim: Output width of the heads, P.
        kappa_e: Concentration of the forward encoder, > 0.
        kappa_b: Concentration of the backward encoder, > 0.
        regression_weight: w, >= 0.
        backward_encoder: Which view's target makes b(z|.).

    Raises:
        DistillError: A concentration is not positive and finite.
    """

    lars_rates = (0.35, 0.25)

    @dataclass(frozen=True)
    class Options(CompressionOptions, TargetOptions, HeadOptions):
        """C-BYOL: BYOL with a price on residual information."""

        kappa_e: Concentration = 16384.0
        """Concentration of the forward encoder e(z|x)."""
        backward_encoder: Literal["cross-view", "same-view"] = "cross-view"
        """Which view's target makes b(z|y): the other one, as in the bound, or the same, as in the
        released program."""

    def __init__(
        self,
        embedding_dim: int,
        *,
        hidden_dim: int = 4096,
        projection_dim: int = 256,
        kappa_e: float = 16384.0,
        kappa_b: float = 10.0,
        regression_weight: float = 5.0,
        backward_encoder: Literal["cross-view", "same-view"] = "cross-view",
    ) -> None:
        super().__init__()
        check_kappa("kappa_e", kappa_e)
        check_kappa("kappa_b", kappa_b)
        self.head = mlp_head(embedding_dim, hidden_dim, projection_dim)
        self.projector = mlp_head(projection_dim, hidden_dim, projection_dim)
        self.predictor = nn.Linear(projection_dim, projection_dim, bias=False)
        self.backward_projector = mlp_head(projection_dim, hidden_dim, projection_dim)
        self.kappa_e, self.kappa_b = kappa_e, kappa_b
        self.regression_weight = regression_weight
        self.backward_encoder = backward_encoder

    @classmethod
    def build(cls, options: Options, embedding_dim: int) -> CBYOL:
        """Build it; see `PretrainMethod`."""
        assert options.regression_weight is not None
        return cls(
            embedding_dim,
            hidden_dim=options.hidden_dim,
            projection_dim=options.projection_dim,
            kappa_e=options.kappa_e,
            kappa_b=options.kappa_b,
            regression_weight=options.regression_weight,
            backward_encoder=options.backward_encoder,
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
        assert target is not None, "c-byol learns from a target"
        mu = self.projection(hidden)
        z = sample(mu, self.kappa_e, generator=generator)
        backward = directions(self.backward_projector(directions(target)))
        (b1, b2), (t1, t2) = backward.chunk(2), target.chunk(2)
        if self.backward_encoder == "cross-view":
            b1, b2 = b2, b1
        y, (mu1, mu2), (z1, z2) = self.predictor(z).chunk(2), mu.chunk(2), z.chunk(2)
        return c_byol_loss(
            Direction(y[0], t2, mu1, z1, b1),
            Direction(y[1], t1, mu2, z2, b2),
            kappa_e=self.kappa_e,
            kappa_b=self.kappa_b,
            regression_weight=self.regression_weight,
            beta=beta,
        )

    def projection(self, hidden: Tensor) -> Tensor:
        """Return the mean directions mu, B x P, from what the head says."""
        return directions(self.projector(hidden))


class Direction(NamedTuple):
    """One view's part, each B x P; the last three are unit."""

    prediction: Tensor
    target: Tensor
    mu: Tensor
    z: Tensor
    backward: Tensor


def c_byol_loss(
    first: Direction,
    second: Direction,
    *,
    kappa_e: float,
    kappa_b: float,
    regression_weight: float,
    beta: float,
) -> LossOutput:
    """Return w (regressions) + beta (residuals); both directions summed, means over the batch.

    Args:
        first: Prediction of the first view, target of the second, mean direction, sample and
            backward direction of the first's z.
        second: The same with the views exchanged.
        kappa_e: Concentration of the forward encoder.
        kappa_b: Concentration of the backward encoder.
        regression_weight: w.
        beta: Weight of the residual information.
    """
    loss, logged = torch.zeros((), device=first.z.device), []
    for part in (first, second):
        byol_loss = regression(part.prediction, part.target)
        log_e = log_density(part.z, part.mu, kappa_e).mean()
        log_b = log_density(part.z, part.backward, kappa_b).mean()
        loss = loss + regression_weight * byol_loss + beta * (log_e - log_b)
        logged.append((byol_loss.detach(), log_e.detach(), log_b.detach()))
    (byol_loss, log_e, log_b), (_, log_e_y, log_b_y) = logged
    return LossOutput(
        loss,
        {
            "byol_loss": byol_loss,
            "i_xzx_y": log_e - log_b,
            "i_yzy_x": log_e_y - log_b_y,
            "i_y_zx": _information(first, second, kappa_b),
            "i_x_zy": _information(second, first, kappa_b),
            "h_e_zx_x": -log_e,
            "h_b_zx_y": -log_b,
        },
    )


@torch.no_grad()
def _information(part: Direction, other: Direction, kappa_b: float) -> Tensor:
    """Return the bound on I(Y;Z) that C-SimCLR maximizes; here it is only logged."""
    across, within = (
        log_density_of_cosine(part.z @ distributed.all_gather(backward).T, part.z.shape[1], kappa_b)
        for backward in (part.backward, other.backward)
    )
    return math.log(2 * across.shape[1] - 1) - contrast(across, within)
