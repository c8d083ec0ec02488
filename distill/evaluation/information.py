"""Information that an encoder keeps of an image, from unit vectors of two views, in nats.

Definitions of Lee et al., Compressive Visual Representations, NeurIPS 2021, section 2, applied to
any encoder f with unit vectors: z ~ e(.|x) = vMF(f(x), kappa_e) represents the first view x, and
b(.|y) = vMF(f(y), kappa_b) predicts it from the second view y. The kappas are arguments, not those
of training, and b uses f itself, not a method's predictor, so that numbers of different methods can
be compared where D is the same.

Expectations over z are exact (`distill.losses.von_mises_fisher`), except in I(Y;Z), whose z are
sampled from a seed. Everything is computed in float64.

Shapes: N images, D width of f, B images of a contrastive batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.losses.von_mises_fisher import (
    check_kappa,
    entropy,
    mean_cosine,
    residual_constant,
    sample,
)

CONTRAST = 256


def measure_information(
    first: Tensor, second: Tensor, *, kappa_e: float, kappa_b: float, seed: int = 0
) -> dict[str, float]:
    """Measure an encoder from its unit vectors of two views of every image.

    Args:
        first: f of the first views, N x D with D >= 2, unit, any float dtype, on the CPU.
        second: f of the second views, N x D, in the same order.
        kappa_e: Concentration of e(z|x), > 0.
        kappa_b: Concentration of b(z|y), > 0.
        seed: Of the z in I(Y;Z).

    Returns:
        Means over images, nats, by name:

        - residual_information: kappa_b A_D(kappa_e) (1 - f(x) . f(y)) >= 0, the part of the bound
          on I(X;Z|Y) that depends on f. The same for z of the second view, by symmetry.
        - residual_constant: The rest of the bound, of D and the kappas alone, >= 0.
        - information_y_z: Lower bound on I(Y;Z), at most log(2B - 1).
        - entropy_e: E[-log e(z|x)], of D and kappa_e alone.
        - entropy_b: E[-log b(z|y)] = entropy_e + residual_constant + residual_information.
        - view_kl: KL(e(.|x) || e(.|y)) = kappa_e A_D(kappa_e) (1 - f(x) . f(y)).
        - view_cosine: f(x) . f(y), in [-1, 1]; not in nats.

    Raises:
        DistillError: A concentration is not positive and finite, or D is below 2.
    """
    check_kappa("kappa_e", kappa_e)
    check_kappa("kappa_b", kappa_b)
    assert first.shape == second.shape
    first, second = F.normalize(first.double()), F.normalize(second.double())
    dim = first.shape[1]
    apart = float((first - second).square().sum(1).mean() / 2)  # 1 - cosine, exactly 0 for equal f
    expected = mean_cosine(dim, kappa_e)
    residual, constant = kappa_b * expected * apart, residual_constant(dim, kappa_e, kappa_b)
    generator = torch.Generator().manual_seed(seed)
    z = sample(first, kappa_e, generator=generator)
    information = contrastive_information(z, first, second, kappa_b=kappa_b).mean()
    return {
        "residual_information": residual,
        "residual_constant": constant,
        "information_y_z": float(information),
        "entropy_e": entropy(dim, kappa_e),
        "entropy_b": entropy(dim, kappa_e) + constant + residual,
        "view_kl": kappa_e * expected * apart,
        "view_cosine": 1 - apart,
    }


def contrastive_information(
    z: Tensor, first: Tensor, second: Tensor, *, kappa_b: float, contrast: int = CONTRAST
) -> Tensor:
    """Return log(2B - 1) + log softmax of kappa_b z . f, whose mean bounds I(Y;Z) from below.

    The positive of z is the second view of its image; the candidates are both views of B images,
    without its own first view. B = min(contrast, N) for every image: batches are consecutive, and
    the last one is filled up with the images before it.

    Args:
        z: Samples around `first`, N x D.
        first: f of the first views, N x D.
        second: f of the second views, N x D.
        kappa_b: The factor of the cosines.
        contrast: B, where there are as many images.

    Returns:
        Nats, (N,), each at most log(2B - 1).
    """
    num_images = len(z)
    size = min(contrast, num_images)
    parts = []
    for start in range(0, num_images, size):
        rows = slice(min(start, num_images - size), min(start + size, num_images))
        bound = _batch_information(z[rows], first[rows], second[rows], kappa_b)
        parts.append(bound[start - rows.start :])
    return torch.cat(parts)


def _batch_information(z: Tensor, first: Tensor, second: Tensor, kappa_b: float) -> Tensor:
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    across, within = kappa_b * z @ second.T, kappa_b * z @ first.T
    logits = torch.cat([across, within.masked_fill(own, -math.inf)], dim=1)
    return math.log(2 * len(z) - 1) + logits.log_softmax(dim=1).diagonal()
