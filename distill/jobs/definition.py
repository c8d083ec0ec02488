"""What the numbers of `distill measure` mean: printed with them, and kept with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distill.evaluation.ascent import MIN_DISTANCE
from distill.evaluation.information import CONTRAST
from distill.losses.von_mises_fisher import entropy, mean_cosine, residual_constant


@dataclass(frozen=True)
class Definition:
    """Everything that two runs must share for their numbers to compare.

    Attributes:
        layer: `projection` or `backbone`.
        width: D, of that layer.
        image_size: Side of the views in pixels.
        images: Which set the images are of, in words.
        num_images: How many.
        augmentation: `photo` or `glyph`.
        seed: Of images, views, samples, pairs and noise.
        kappa_e: Concentration of e(z|x).
        kappa_b: Concentration of b(z|y).
    """

    layer: str
    width: int
    image_size: int
    images: str
    num_images: int
    augmentation: str
    seed: int
    kappa_e: float
    kappa_b: float

    def lines(self) -> list[str]:
        """Return the definition in words, a line for each part."""
        kappas, contrast = (self.kappa_e, self.kappa_b), min(CONTRAST, self.num_images)
        layer = "projection" if self.layer == "projection" else "embedding of the backbone"
        return [
            f"x, y: both views ({self.augmentation}) of {self.num_images:,} images of "
            f"{self.images}, {self.image_size} px, pixels in [0, 1], seed {self.seed}",
            f"f: L2-normalized {layer}, D = {self.width}, float32",
            f"e(z|x) = vMF(f(x), kappa_e = {self.kappa_e:g}), b(z|y) = vMF(f(y), kappa_b = "
            f"{self.kappa_b:g}), nats; entropy_e = {entropy(self.width, self.kappa_e):.4f}",
            "residual_information = mean kappa_b A (1 - f(x).f(y)), A = A_D(kappa_e) = "
            f"{mean_cosine(self.width, self.kappa_e):.6f}, without the constant part of "
            f"I(X;Z|Y), residual_constant = {residual_constant(self.width, *kappas):.4f}",
            "view_kl = mean KL(e(.|x) || e(.|y)) = mean kappa_e A (1 - f(x).f(y))",
            f"information_y_z: lower bound on I(Y;Z) among {contrast} images, at most "
            f"log(2 * {contrast} - 1) = {math.log(2 * contrast - 1):.4f}",
            "lipschitz: largest |f(x) - f(x')| / |x - x'| found; kl_lipschitz: largest KL / "
            f"|x - x'|; Euclidean, |x - x'| >= {MIN_DISTANCE:g}; x an image, x' sampled (another "
            "image or x and noise) and then ascended by gradient: lower bounds",
        ]


_WORDS = {
    "layer": "layer",
    "width": "width D",
    "image_size": "image size",
    "images": "images",
    "num_images": "number of images",
    "augmentation": "augmentation",
}


def why_not_comparable(definitions: Sequence[Definition]) -> str | None:
    """Say in what the definitions of several runs differ; None when they agree."""
    differing = []
    for name, words in _WORDS.items():
        values = sorted({getattr(definition, name) for definition in definitions})
        if len(values) > 1:
            differing.append(f"{words} ({', '.join(map(str, values))})")
    return f"these runs differ in {' and '.join(differing)}" if differing else None
