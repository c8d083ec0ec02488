"""The two views of an image that self-supervised pre-training compares.

The geometry is cut here, from PIL images; the colour is drawn here and applied later to whole
batches, see `distill.data.distortions`. "photo" is the published, asymmetric augmentation (SimCLR,
appendix A; BYOL, appendix B): what differs between the views is blur and solarization alone.

Shapes: S side of the views in pixels, P parameters of one view's distortion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from distill.data.distortions import DistortionRanges, draw_distortions
from distill.data.sources import ImageData
from distill.data.transforms import View
from distill.errors import DistillError, UnknownNameError

PRETRAINING_AUGMENTATIONS = ("photo", "glyph")

PUBLISHED_SIZE = 224  # pixels; the blur's sigma is meant for this side
PHOTO_DISTORTIONS = DistortionRanges(
    jitter_probability=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    grey_probability=0.2,
    blur_probability=(1.0, 0.1),
    sigma=(0.1, 2.0),
    solarize_probability=(0.0, 0.2),
)
GLYPH_DISTORTIONS = DistortionRanges(
    jitter_probability=0.8,
    brightness=0.2,
    contrast=0.4,
    blur_probability=(0.5, 0.5),
    sigma=(0.1, 1.0),
)


@dataclass(frozen=True)
class TwoViews:
    """How to make two views of an image; everything random draws from torch's global generator.

    Attributes:
        view: from an RGB image to a uint8 tensor (3, S, S), without the distortion.
        second_view: the same for the second view.
        draw: draws both views' distortions float32 (2, P), see `distill.data.distortions`.
    """

    view: View
    second_view: View
    draw: Callable[[], Tensor]


def two_views(image_size: int, augmentation: str) -> TwoViews:
    """Return how pre-training makes its two views.

    Args:
        image_size: S, side of the views in pixels.
        augmentation: "photo", the published one: a bicubic crop of 8 to 100 % of the image's area,
            stretched by up to 4:3, mirrored half of the time, with `PHOTO_DISTORTIONS`, whose blur
            is scaled with S. "glyph",
            for digits, letters or signs on black, where a mirror image means something else and a
            small crop nothing: the whole image turned by up to 15 degrees, scaled by 0.75 to 1.2,
            moved by up to 10 % of S and sheared by up to 10 degrees, with `GLYPH_DISTORTIONS`.

    Raises:
        UnknownNameError: an augmentation that is not in `PRETRAINING_AUGMENTATIONS`.
        DistillError: `image_size` below 1.
    """
    if image_size < 1:
        raise DistillError(f"the image size is {image_size} pixels; it must be at least 1")
    if augmentation == "photo":
        view, ranges = _random_crop(image_size), _photo_distortions(image_size)
    elif augmentation == "glyph":
        view, ranges = _random_affine(image_size), GLYPH_DISTORTIONS
    else:
        raise UnknownNameError("augmentation", augmentation, PRETRAINING_AUGMENTATIONS)
    return TwoViews(view, view, partial(draw_distortions, ranges))


def default_pretraining_augmentation(data: ImageData) -> str:
    """Return what suits the data: "glyph" where a mirrored image means another, else "photo"."""
    return "photo" if data.horizontal_flip else "glyph"


def _photo_distortions(image_size: int) -> DistortionRanges:
    """Keep the blur that is published for 224 px the same for the eye at another side."""
    factor = image_size / PUBLISHED_SIZE
    low, high = PHOTO_DISTORTIONS.sigma
    return replace(PHOTO_DISTORTIONS, sigma=(factor * low, factor * high))


def _random_crop(image_size: int) -> View:
    crop = v2.RandomResizedCrop(
        image_size,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        interpolation=InterpolationMode.BICUBIC,
    )
    return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])


def _random_affine(image_size: int) -> View:
    affine = v2.RandomAffine(
        degrees=15,
        translate=(0.1, 0.1),
        scale=(0.75, 1.2),
        shear=(-10, 10, -10, 10),
        interpolation=InterpolationMode.BILINEAR,
        fill=0,
    )
    resize = v2.Resize((image_size, image_size), InterpolationMode.BICUBIC)
    return v2.Compose([resize, affine, v2.PILToTensor()])
