"""What a network is shown of a corrupted image: its evaluation crop, corrupted.

As in the published set, images are resized and cropped first and corrupted then. The corruption
depends on (seed, corruption, severity, image) alone, not on the order or number of loaders, and is
the same for all networks that look at the same crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from distill.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from distill.data.transforms import View, evaluation_view
from distill.networks import InputSpec

_MAX_SEED = 2**32


@dataclass(frozen=True)
class CorruptedView:
    """One corruption of the evaluation view of every image.

    Attributes:
        input: Of the network; its side is at least 32.
        corruption: One of `CORRUPTIONS`.
        severity: From 1 to 5.
        seed: At least 0.
    """

    input: InputSpec
    corruption: str
    severity: int
    seed: int

    @property
    def draw(self) -> tuple[int, int]:
        """Seed and number for the loader, which mixes the image in."""
        position = CORRUPTIONS.index(self.corruption)
        return self.seed, position * len(SEVERITIES) + self.severity - 1

    def build(self) -> View:
        """Return the function from an image to the view; it draws from torch's generator."""
        clean = evaluation_view(
            self.input.image_size,
            crop_fraction=self.input.crop_fraction,
            interpolation=self.input.interpolation,
        )
        return _Corrupted(clean, self.corruption, self.severity)


@dataclass(frozen=True)
class _Corrupted:
    clean: View
    corruption: str
    severity: int

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = self.clean(image).permute(1, 2, 0).contiguous().numpy()
        seed = int(torch.randint(_MAX_SEED, ()))
        corrupted = corrupt(pixels, self.corruption, self.severity, seed=seed)
        return torch.from_numpy(corrupted).permute(2, 0, 1).contiguous()
