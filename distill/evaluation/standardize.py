"""What a linear classifier is given: rows of unit norm, standardized per dimension, in float32.

Protocol (CompRess, NeurIPS 2020): L2-normalize, then subtract the mean and divide by the standard
deviation of the training rows, which stay fixed. As in the published program the variance is the
unbiased one and `EPSILON` is added to it, which matters: a row of unit norm has a variance of at
most 1 / D per dimension. Embeddings may lie on the disk, of any floating dtype; they are read in
chunks or by index, and are held standardized only where that fits into memory.

Shapes: N rows, B rows of a batch, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.engine.device import free_memory
from distill.errors import DistillError
from distill.evaluation.row_blocks import Rows

EPSILON = 1e-5
_CHUNK_BYTES = 64 * 2**20  # of float32 rows that are worked on at a time
_SHARE_OF_MEMORY = 0.3  # that standardized rows may take


@dataclass(frozen=True)
class Standardizer:
    """Per-dimension statistics of training rows of unit norm.

    Attributes:
        mean: (D,) float32.
        scale: (D,) float32, what is multiplied by; 0 for a dimension that is constant in training,
            which then says nothing about any image.
    """

    mean: Tensor
    scale: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Normalize and standardize rows (B, D) of any floating dtype, to float32 (B, D)."""
        return (unit_norm(rows) - self.mean) * self.scale


def fit_standardizer(features: Rows, rows: np.ndarray, *, device: torch.device) -> Standardizer:
    """Return the statistics of some rows, read in chunks in two passes.

    Args:
        features: (N, D), any scale and floating dtype, finite.
        rows: Which of them, at least one.
        device: Where the statistics lie.
    """
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=device)
    for chunk in chunks(features, rows, device=device):
        total += unit_norm(chunk).double().sum(0)
    mean = total / len(rows)
    squares = torch.zeros_like(mean)
    for chunk in chunks(features, rows, device=device):
        squares += (unit_norm(chunk).double() - mean).square().sum(0)
    variance = squares / max(len(rows) - 1, 1)
    # The rounding of float32 rows around a constant is not a variance.
    is_constant = variance <= (1e-6 * mean).square()
    scale = (variance + EPSILON).rsqrt().masked_fill(is_constant, 0.0)
    return Standardizer(mean.float(), scale.float())


class StandardizedRows:
    """Some rows of a set of embeddings, standardized, by their place among the chosen ones.

    They are computed once where they fit into memory on the device, else batch by batch; either way
    they are the same.

    Args:
        features: (N, D), any scale and floating dtype, finite.
        rows: The chosen ones.
        standardizer: On `device`.
        device: Where rows are wanted.
    """

    def __init__(
        self,
        features: Rows,
        rows: np.ndarray,
        standardizer: Standardizer,
        *,
        device: torch.device,
    ) -> None:
        self.features = features
        self.rows = rows
        self.standardizer = standardizer
        self.device = device
        width = features.shape[1]
        fits = 4 * len(rows) * width <= _SHARE_OF_MEMORY * free_memory(device)
        self._all = torch.empty(len(rows), width, device=device) if fits else None
        if self._all is not None:
            end = 0
            for chunk in chunks(features, rows, device=device):
                self._all[end : end + len(chunk)] = standardizer(chunk)
                end += len(chunk)

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, places: np.ndarray) -> Tensor:
        """Return rows by place, float32 (B, D)."""
        if self._all is not None:
            return self._all[torch.from_numpy(places).to(self.device)]
        return self.standardizer(gathered(self.features, self.rows[places], device=self.device))


def unit_norm(rows: Tensor) -> Tensor:
    """Scale rows (B, D) to unit norm, float32; rows of zeros stay."""
    rows = rows.float()
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)


def chunks(features: Rows, rows: np.ndarray, *, device: torch.device) -> Iterator[Tensor]:
    """Yield the chosen rows in order, as many at a time as stay small."""
    at_once = max(1, _CHUNK_BYTES // (4 * max(1, features.shape[1])))
    for start in range(0, len(rows), at_once):
        yield gathered(features, rows[start : start + at_once], device=device)


def gathered(features: Rows, rows: np.ndarray, *, device: torch.device) -> Tensor:
    """Copy rows by number to the device, in their own dtype."""
    return torch.from_numpy(np.ascontiguousarray(features[rows])).to(device)


def require_finite(features: Rows) -> None:
    """Refuse embeddings of which a row is not finite; reads them in chunks.

    Raises:
        DistillError: Saying how many are not.
    """
    everything = chunks(features, np.arange(len(features)), device=torch.device("cpu"))
    num_bad = sum(int((~chunk.float().norm(dim=1).isfinite()).sum()) for chunk in everything)
    if num_bad:
        raise DistillError(
            f"{num_bad} of {len(features)} embeddings are not finite; the network's weights are "
            "damaged or its training diverged"
        )
