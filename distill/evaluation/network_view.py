"""What a frozen network is shown of an image: its evaluation view, or one of numbered random crops.

A random crop depends on (seed, number, image) alone, like a training view, but is never the crop
that training itself draws of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from distill.data.transforms import View, evaluation_view, training_view
from distill.networks import InputSpec


class ShownView(Protocol):
    """Any view of every image that a network can be shown."""

    @property
    def draw(self) -> tuple[int, int] | None:
        """Seed and number for the loader; None for a view without randomness."""

    def build(self) -> View:
        """Return the function from an image to the view."""


@dataclass(frozen=True)
class NetworkView:
    """One view of every image, at the network's own input size.

    Attributes:
        input: Of the network.
        number: 0 for the evaluation view, from 1 on for random crops.
        augmentation: How these are drawn, see `training_view`; not for the evaluation view.
        seed: Of these.
    """

    input: InputSpec
    number: int = 0
    augmentation: str | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """What to call the view."""
        return "centre" if self.number == 0 else f"random {self.number}"

    @property
    def draw(self) -> tuple[int, int] | None:
        """Seed and number for the loader; None for a view without randomness."""
        return None if self.seed is None else (self.seed, self.number)

    @property
    def crop_fraction(self) -> float | None:
        """Of the evaluation view; None for random crops."""
        return self.input.crop_fraction if self.number == 0 else None

    def build(self) -> View:
        """Return the function from an image to the view."""
        size, interpolation = self.input.image_size, self.input.interpolation
        if self.augmentation is None:
            return evaluation_view(
                size, crop_fraction=self.input.crop_fraction, interpolation=interpolation
            )
        return training_view(size, self.augmentation, interpolation=interpolation)
