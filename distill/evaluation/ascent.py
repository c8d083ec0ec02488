"""Gradient ascent on |f(x) - f(x')|^p / |x - x'| over x', from pairs of images.

x stays the image that it is. Were it free to move too, ascent would walk to where f is about to be
normalized from almost nothing: the ratio has no bound there, of whatever encoder, and no image is
near. A step turns and stretches d = x' - x by |d|^2 times the gradient of the log ratio, which for
a linear f is power iteration. A pair keeps a step only if its ratio grows; the next one is then
longer, else shorter. x' stays in [0, 1] and at least `MIN_DISTANCE` from x.

Shapes: P pairs of images of side S, D width of f.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# 1e-7, the rounding of a float32 in f, is 1e-5 of this.
MIN_DISTANCE = 0.01
NUM_STEPS = 50
_LONGER, _SHORTER = 1.5, 0.4

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pairs:
    """Pairs of images with what they score.

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
        starts: Where to begin, on the device of `encode`.
        power: p.
        num_steps: Steps, each of one pass forward and back.

    Returns:
        The pairs that were reached, none with a lower score than at its start but for rounding.
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
    """Turn d by a gradient step and stretch it by what the gradient says along d."""
    d = other - x
    distance = _norm(d)
    turned = d + length * distance.square() * gradient
    along = (d * gradient).sum((1, 2, 3), keepdim=True).clamp(-1, 1)
    stretched = ((length * along).exp() * distance).clamp_min(1.01 * MIN_DISTANCE)
    return (x + turned * (stretched / _norm(turned).clamp_min(1e-30))).clamp(0, 1)


def _norm(images: Tensor) -> Tensor:
    return images.flatten(1).norm(dim=1)[:, None, None, None]
