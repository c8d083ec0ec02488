"""A price on what a student's embedding keeps of one view and the other view does not tell.

Source: Lee et al., Compressive Visual Representations, NeurIPS 2021, section 2 (C-SimCLR), without
its contrastive term, in whose place the student's own loss stands. Of two views x and y of an
image, the student's unit embeddings are mean directions of von Mises-Fisher distributions:
e(z|x) = vMF(mu_x, kappa_e) and b(z|y) = vMF(mu_y, kappa_b). For Z drawn from e(.|x),

    I(X; Z | Y) <= E[log e(z|x) - log b(z|y)] = kappa_b A_d(kappa_e) (1 - mu_x . mu_y) + constant

is the bound, for any b; likewise with x and y exchanged, and both directions are summed. The mean
over z, of which C-SimCLR draws one, is taken exactly (`expected_residual`): what the student is
compared by here is mu, so a sample would add nothing but noise. It is therefore a bound on what a
vMF sample around the embedding keeps; of mu itself, a deterministic function of x, the information
is not finite. With fixed kappas only the views' agreement is trained; kappa_b A_d is its scale.

Shapes: b images of this rank, D width >= 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from distill.errors import DistillError
from distill.losses.von_mises_fisher import check_kappa, expected_residual, residual_constant


@dataclass(frozen=True)
class ResidualInformation:
    """The bound on I(X;Z|Y) + I(Y;Z|X), and what it adds to a loss.

    Attributes:
        beta: Weight, >= 0; 1 in C-SimCLR.
        kappa_e: Concentration of the forward encoder, > 0.
        kappa_b: Concentration of the backward encoder, > 0.

    Raises:
        DistillError: One of them is out of range.
    """

    beta: float
    kappa_e: float = 1024.0
    kappa_b: float = 10.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise DistillError(f"beta is {self.beta}; it must be at least 0 and finite")
        check_kappa("kappa_e", self.kappa_e)
        check_kappa("kappa_b", self.kappa_b)

    def information(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the bound, both directions summed: the mean over the rows, 0-d, in nats.

        Args:
            x: Embeddings of one view, b x D with b >= 1, any float dtype; need not be unit.
            y: Of the other view of the same images.

        Raises:
            DistillError: D is below 2.
        """
        cosine = (F.normalize(x.float()) * F.normalize(y.float())).sum(1)
        return 2 * expected_residual(cosine, x.shape[1], self.kappa_e, self.kappa_b).mean()

    def penalty(self, x: Tensor, y: Tensor) -> Tensor:
        """Return beta times `information` beyond that of equal views, which no gradient changes.

        Without rows it is 0 with a gradient of 0, so that all ranks take part in a backward pass.
        """
        if len(x) == 0:
            return x.sum() + y.sum()
        least = 2 * residual_constant(x.shape[1], self.kappa_e, self.kappa_b)
        return self.beta * (self.information(x, y) - least)
