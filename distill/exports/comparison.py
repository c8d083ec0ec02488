"""Compares what an exported file computes with the network that it was made from.

Shapes: N images, B batch, S image side, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.errors import DistillError
from distill.exports.network import Embed

BATCH_SIZES = (1, 3, 8)
TOLERANCE = 1e-4  # of a row's length, in float32


@dataclass(frozen=True)
class Difference:
    """How far the embeddings of an exported file are from the original's.

    Attributes:
        absolute: Largest difference of two numbers.
        relative: Largest length of a row's difference over the length of the original's row.
    """

    absolute: float
    relative: float


def compare(original: Embed, exported: Embed, pixels: Tensor, *, what: str) -> Difference:
    """Return the largest difference over batches of 1, 3 and 8 images.

    Args:
        original: The network that was exported.
        exported: What the file computes.
        pixels: float32 (N, 3, S, S), N at least 1; they are taken in turn.
        what: The file, for errors.

    Raises:
        DistillError: They do not agree within `TOLERANCE`, in shape or in dtype, or the original's
            embeddings are not finite.
    """
    found = [_difference(original(b), exported(b), what) for b in _batches(pixels)]
    difference = Difference(
        absolute=max(each.absolute for each in found),
        relative=max(each.relative for each in found),
    )
    if difference.relative > TOLERANCE:
        raise DistillError(
            f"{what} does not compute what the network computes: its embeddings differ by "
            f"{difference.relative:.2g} of their length and {TOLERANCE:g} is allowed, so it was "
            "not kept; try another --format, and report it with the versions of your packages"
        )
    return difference


def _difference(original: Tensor, exported: Tensor, what: str) -> Difference:
    if not torch.isfinite(original).all():
        raise DistillError(
            "the network's embeddings of its own images are not finite, so there is nothing to "
            "export; train it again with a lower --learning-rate"
        )
    if (original.shape, original.dtype) != (exported.shape, exported.dtype):
        raise DistillError(
            f"{what} gives {exported.dtype} {tuple(exported.shape)} where the network gives "
            f"{original.dtype} {tuple(original.shape)}, so it was not kept; try another --format"
        )
    if not torch.isfinite(exported).all():
        return Difference(torch.inf, torch.inf)
    gap = (exported - original).double()
    lengths = original.double().norm(dim=1)
    # A row of zeros, as of a network behind a last ReLU, must come back as zeros.
    relative = torch.where(gap.norm(dim=1) == 0, 0.0, gap.norm(dim=1) / lengths)
    return Difference(gap.abs().max().item(), relative.max().item())


def _batches(pixels: Tensor) -> Iterator[Tensor]:
    start = 0
    for size in BATCH_SIZES:
        yield pixels[torch.arange(start, start + size) % len(pixels)]
        start += size
