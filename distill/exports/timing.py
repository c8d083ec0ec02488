"""Times two functions side by side, so that what else the machine does slows both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from distill.exports.network import Embed

BATCH_SIZES = (1, 32)
_SECONDS = 1.0  # for each batch size, about
_ROUNDS = (3, 100)  # at least, at most


def milliseconds_per_image(
    functions: Sequence[Embed], pixels: Tensor, *, batch_size: int
) -> list[float]:
    """Return the median time of each function, in milliseconds for one image.

    The functions take turns, after one call each that does not count.

    Args:
        functions: Any number.
        pixels: float32 (N, 3, S, S), N at least 1; repeated to fill the batch.
        batch_size: Images in a call.
    """
    batch = pixels[torch.arange(batch_size) % len(pixels)]
    for function in functions:
        function(batch)
    seconds: list[list[float]] = [[] for _ in functions]
    least, most = _ROUNDS
    while len(seconds[0]) < least or (len(seconds[0]) < most and sum(map(sum, seconds)) < _SECONDS):
        for function, mine in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function(batch)
            mine.append(time.perf_counter() - start)
    return [1000 * median(mine) / batch_size for mine in seconds]
