"""Lower bounds on how fast an encoder changes: Lipschitz constants of f and of the KL divergence.

For pairs of images x and x' the ratios are |f(x) - f(x')| / |x - x'| and KL / |x - x'|, where KL =
kappa A_D(kappa) (1 - f(x) . f(x')) is that of the von Mises-Fisher distributions around f(x) and
f(x') (Lee et al., Compressive Visual Representations, NeurIPS 2021).
Pixels are in [0, 1], norms are Euclidean. Every ratio is a lower bound on the constant over all
images; the largest of those that were found is reported, of pairs that were drawn and of pairs that
gradient ascent (`distill.evaluation.ascent`) made of them by moving x'.

Pairs are of two distinct images, or of an image and itself plus noise. Closer than `MIN_DISTANCE`
none counts: the rounding of float32 would pass for a change of f.

Shapes: N images of side S, P pairs, D width of f.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.evaluation.ascent import MIN_DISTANCE, Encode, Pairs, ascend, log_ratio
from distill.losses.von_mises_fisher import mean_cosine

NUM_PARTNERS = 8  # other images that every image is paired with
NOISE_NORMS = (2 * MIN_DISTANCE, 20 * MIN_DISTANCE, 200 * MIN_DISTANCE)
NUM_STARTS = 16  # pairs of either kind that ascent starts from
_CHANGE, _DIVERGENCE = 1, 2  # powers of |f(x) - f(x')|; 1 - cosine is half its square
_Drawn = Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]  # x, x', f(x), f(x')


@dataclass(frozen=True)
class LipschitzBounds:
    """The largest ratios found, each a lower bound on the constant.

    Attributes:
        lipschitz_sampled: |f(x) - f(x')| / |x - x'| over pairs that were drawn; 1 / pixel range.
        lipschitz_ascended: The same after gradient ascent; never lower.
        kl_lipschitz_sampled: KL / |x - x'| over pairs that were drawn; nats / pixel range.
        kl_lipschitz_ascended: The same after gradient ascent; never lower.
    """

    lipschitz_sampled: float
    lipschitz_ascended: float
    kl_lipschitz_sampled: float
    kl_lipschitz_ascended: float


def lipschitz_bounds(
    encode: Encode,
    images: Tensor,
    *,
    kappa: float,
    device: torch.device,
    batch_size: int = 128,
    seed: int = 0,
) -> LipschitzBounds:
    """Search for the pair of images that f changes fastest between.

    The caller sees to evaluation mode and to full float32 (`distill.engine.device.full_float32`).

    Args:
        encode: f, images float32 in [0, 1] on `device` -> unit vectors, differentiable, each row by
            itself.
        images: N x 3 x S x S, N >= 2, float32 in [0, 1], on any device.
        kappa: Of the distributions that the KL divergence is between, > 0.
        device: Where `encode` computes.
        batch_size: Images per pass.
        seed: Of the pairs and of the noise.
    """
    assert len(images) > 1
    change, divergence, dim = _best_drawn_pairs(encode, images, device, batch_size, seed)
    factor = kappa * mean_cosine(dim, kappa) / 2
    change_sampled, change_ascended = _bounds(encode, change, _CHANGE)
    kl_sampled, kl_ascended = _bounds(encode, divergence, _DIVERGENCE)
    return LipschitzBounds(
        change_sampled, change_ascended, factor * kl_sampled, factor * kl_ascended
    )


def _bounds(encode: Encode, starts: Pairs, power: int) -> tuple[float, float]:
    """Return the largest ratio before and after ascent."""
    sampled = math.exp(starts.score.max())
    # Whether an image comes in a large or a small batch changes the last digit of its f.
    return sampled, max(sampled, math.exp(ascend(encode, starts, power=power).score.max()))


def _best_drawn_pairs(
    encode: Encode, images: Tensor, device: torch.device, batch_size: int, seed: int
) -> tuple[Pairs, Pairs, int]:
    """Return the pairs to ascend from, by change and by divergence, and D.

    Pairs of distinct images and pairs by noise are ranked apart, so that both are among them.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        embeddings = torch.cat([encode(batch.to(device)) for batch in images.split(batch_size)])
        distinct = _best(_distinct(images, embeddings, batch_size, generator), device)
        noisy = _best(_noisy(encode, images, embeddings, batch_size, generator), device)
    change, divergence = (Pairs.joined(kinds) for kinds in zip(distinct, noisy, strict=True))
    return change, divergence, embeddings.shape[1]


def _best(drawn: _Drawn, device: torch.device) -> list[Pairs]:
    """Return the pairs with the largest ratios of change, and those of divergence."""
    best: list[list[Pairs]] = [[], []]
    for first, second, f_first, f_second in drawn:
        x = first.to(device), second.to(device)
        for number, power in enumerate((_CHANGE, _DIVERGENCE)):
            pairs = Pairs(*x, log_ratio(*x, f_first, f_second, power=power))
            best[number] = [Pairs.joined([*best[number], pairs]).best(NUM_STARTS)]
    return [pairs for (pairs,) in best]


def _distinct(
    images: Tensor, embeddings: Tensor, batch_size: int, generator: torch.Generator
) -> _Drawn:
    """Pair every image with `NUM_PARTNERS` others, at the same random offsets for all."""
    num_images = len(images)
    offsets = torch.randperm(num_images - 1, generator=generator)[:NUM_PARTNERS] + 1
    for offset in offsets:
        for rows in torch.arange(num_images).split(batch_size):
            others = (rows + offset) % num_images
            yield images[rows], images[others], embeddings[rows], embeddings[others]


def _noisy(
    encode: Encode, images: Tensor, embeddings: Tensor, batch_size: int, generator: torch.Generator
) -> _Drawn:
    """Pair every image with itself plus noise of each norm."""
    for norm in NOISE_NORMS:
        parts = zip(images.split(batch_size), embeddings.split(batch_size), strict=True)
        for batch, f_batch in parts:
            noisy = _with_noise(batch, norm, generator)
            yield batch, noisy, f_batch, encode(noisy.to(f_batch.device))


def _with_noise(images: Tensor, norm: float, generator: torch.Generator) -> Tensor:
    """Add noise of a Euclidean norm; where it would leave [0, 1] its sign is turned."""
    # Image by image, so that the number of images in a pass does not matter.
    draws = [torch.randn(image.shape, generator=generator) for image in images]
    noise = torch.stack(draws).to(images.device)
    noise = norm * noise / noise.flatten(1).norm(dim=1)[:, None, None, None]
    leaves = (images + noise - 0.5).abs() > 0.5
    return (images + torch.where(leaves, -noise, noise)).clamp(0, 1)
