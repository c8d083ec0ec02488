"""Lower bounds on the Lipschitz constants of an encoder f and of the KL divergence.

For pairs of images x and x' the ratios are |f(x) - f(x')| / |x - x'| and KL / |x - x'|, where KL =
kappa A_D(kappa) (1 - f(x) . f(x')) is that of the von Mises-Fisher distributions around f(x) and
f(x') (Lee et al., Compressive Visual Representations, NeurIPS 2021). Pixels are in [0, 1], norms
are Euclidean. Every ratio is a lower bound on the constant over all images. The largest one is
reported, once over sampled pairs (two distinct images, or an image and the same image plus noise)
and once after gradient ascent on log |f(x) - f(x')|^p / |x - x'| from the best sampled pairs.

Ascent moves x' only. If x could move too, it would reach inputs, far from any image, whose vector
before normalization is almost zero; there the ratio is unbounded for every encoder. A step turns
and stretches d = x' - x by |d|^2 times the gradient of the log ratio, which for a linear f is
power iteration. A step is kept only if the ratio grows; the next step is then longer, else shorter.
x' stays in [0, 1] and at least `MIN_DISTANCE` from x: at smaller distances the rounding of float32
would dominate the change of f.

Shapes: N images of side S, P pairs, D width of f.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses.von_mises_fisher import mean_cosine

# 1e-7, the rounding of a float32 in f, is 1e-5 of this.
MIN_DISTANCE = 0.01
NUM_STEPS = 50
_LONGER, _SHORTER = 1.5, 0.4

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pairs:
    """Pairs of images with their scores.

    Attributes:
        first: x, P x 3 x S x S, float32 in [0, 1].
        second: x', likewise.
        score: Log of the ratio, (P,) float64; -inf for pairs that are too close to count.
    """

    first: Tensor
    second: Tensor
    score: Tensor

    def best(self, number: int) -> Pairs:
        """Return the pairs with the largest scores, at most `number`."""
        rows = self.score.topk(min(number, len(self.score))).indices
        return Pairs(self.first[rows], self.second[rows], self.score[rows])

    @staticmethod
    def joined(parts: Sequence[Pairs]) -> Pairs:
        """Return all pairs of all parts."""
        return Pairs(
            torch.cat([part.first for part in parts]),
            torch.cat([part.second for part in parts]),
            torch.cat([part.score for part in parts]),
        )


def log_ratio(
    first: Tensor, second: Tensor, f_first: Tensor, f_second: Tensor, *, power: int
) -> Tensor:
    """Return p log |f(x) - f(x')| - log |x - x'|, differences and norms in float64.

    Args:
        first: x, P x 3 x S x S.
        second: x', likewise.
        f_first: f(x), P x D.
        f_second: f(x'), likewise.
        power: p.

    Returns:
        (P,) float64; -inf where x and x' are closer than `MIN_DISTANCE`.
    """
    squared_change = (f_first.double() - f_second.double()).square().sum(1)
    distance = (first.double() - second.double()).flatten(1).norm(dim=1)
    # The smallest logarithm is that of 1e-30, so that equal embeddings have a gradient: zero.
    score = power / 2 * squared_change.clamp_min(1e-30).log() - distance.clamp_min(1e-30).log()
    return score.masked_fill(distance < MIN_DISTANCE, -math.inf)


def ascend(encode: Encode, starts: Pairs, *, power: int, num_steps: int = NUM_STEPS) -> Pairs:
    """Raise the ratio of every pair by gradient ascent over x'.

    Args:
        encode: f, float32 images -> P x D, differentiable, each row by itself.
        starts: Initial pairs, on the device of `encode`.
        power: p.
        num_steps: Steps, each one forward and one backward pass.

    Returns:
        The final pairs; up to rounding, no score is lower than at the start.
    """
    x = starts.first
    with torch.no_grad():
        f_x = encode(x)
    reached = starts.second
    score, gradient = _scored(encode, x, reached, f_x, power)
    length = torch.ones(len(x), 1, 1, 1, device=x.device)
    for _ in range(num_steps):
        proposed = _moved(x, reached, gradient, length)
        new_score, new_gradient = _scored(encode, x, proposed, f_x, power)
        better = new_score > score
        column = better[:, None, None, None]
        score = torch.where(better, new_score, score)
        reached = torch.where(column, proposed, reached)
        gradient = torch.where(column, new_gradient, gradient)
        length = torch.where(column, _LONGER * length, _SHORTER * length)
    return Pairs(x, reached, score)


def _scored(
    encode: Encode, x: Tensor, other: Tensor, f_x: Tensor, power: int
) -> tuple[Tensor, Tensor]:
    """Return the scores and their gradients with respect to `other`."""
    with torch.enable_grad():
        other = other.detach().requires_grad_()
        score = log_ratio(x, other, f_x, encode(other), power=power)
        (gradient,) = torch.autograd.grad(score.sum(), other)
    return score.detach(), gradient


def _moved(x: Tensor, other: Tensor, gradient: Tensor, length: Tensor) -> Tensor:
    """Turn d by a gradient step, and stretch it by the gradient's component along d."""
    d = other - x
    distance = _norm(d)
    turned = d + length * distance.square() * gradient
    along = (d * gradient).sum((1, 2, 3), keepdim=True).clamp(-1, 1)
    stretched = ((length * along).exp() * distance).clamp_min(1.01 * MIN_DISTANCE)
    return (x + turned * (stretched / _norm(turned).clamp_min(1e-30))).clamp(0, 1)


def _norm(images: Tensor) -> Tensor:
    return images.flatten(1).norm(dim=1)[:, None, None, None]


NUM_PARTNERS = 8  # other images that every image is paired with
NOISE_NORMS = (2 * MIN_DISTANCE, 20 * MIN_DISTANCE, 200 * MIN_DISTANCE)
NUM_STARTS = 16  # pairs of either kind that ascent starts from
_CHANGE, _DIVERGENCE = 1, 2  # powers of |f(x) - f(x')|; 1 - cosine is half its square
_Drawn = Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]  # x, x', f(x), f(x')


def lipschitz_bounds(
    encode: Encode,
    images: Tensor,
    *,
    kappa: float,
    device: torch.device,
    batch_size: int = 128,
    seed: int = 0,
) -> dict[str, float]:
    """Search for the pair of images with the largest ratio.

    The caller sets evaluation mode and full float32 (`distill.device.full_float32`).

    Args:
        encode: f, images float32 in [0, 1] on `device` -> unit vectors, differentiable, each row by
            itself.
        images: N x 3 x S x S, N >= 2, float32 in [0, 1], on any device.
        kappa: Of the distributions that the KL divergence is between, > 0.
        device: Where `encode` computes.
        batch_size: Images per pass.
        seed: Of the pairs and of the noise.

    Returns:
        The largest ratios, each a lower bound on the constant, by name:

        - lipschitz_sampled: |f(x) - f(x')| / |x - x'| over sampled pairs; 1 / pixel range.
        - lipschitz_ascended: The same after gradient ascent; never lower.
        - kl_lipschitz_sampled: KL / |x - x'| over sampled pairs; nats / pixel range.
        - kl_lipschitz_ascended: The same after gradient ascent; never lower.
    """
    assert len(images) > 1
    change, divergence, dim = _best_drawn_pairs(encode, images, device, batch_size, seed)
    factor = kappa * mean_cosine(dim, kappa) / 2
    change_sampled, change_ascended = _bounds(encode, change, _CHANGE)
    kl_sampled, kl_ascended = _bounds(encode, divergence, _DIVERGENCE)
    return {
        "lipschitz_sampled": change_sampled,
        "lipschitz_ascended": change_ascended,
        "kl_lipschitz_sampled": factor * kl_sampled,
        "kl_lipschitz_ascended": factor * kl_ascended,
    }


def _bounds(encode: Encode, starts: Pairs, power: int) -> tuple[float, float]:
    """Return the largest ratio before and after ascent."""
    sampled = math.exp(starts.score.max())
    # The batch size changes the last digit of f.
    return sampled, max(sampled, math.exp(ascend(encode, starts, power=power).score.max()))


def _best_drawn_pairs(
    encode: Encode, images: Tensor, device: torch.device, batch_size: int, seed: int
) -> tuple[Pairs, Pairs, int]:
    """Return the pairs to ascend from, by change and by divergence, and D.

    Pairs of distinct images and pairs with noise are ranked separately, so that both are kept.
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
    """Add noise of a Euclidean norm, with its sign flipped where it would leave [0, 1]."""
    # Drawn image by image, independent of the batch size.
    draws = [torch.randn(image.shape, generator=generator) for image in images]
    noise = torch.stack(draws).to(images.device)
    noise = norm * noise / noise.flatten(1).norm(dim=1)[:, None, None, None]
    leaves = (images + noise - 0.5).abs() > 0.5
    return (images + torch.where(leaves, -noise, noise)).clamp(0, 1)
