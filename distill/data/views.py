"""Views of an image: what training, evaluation and pre-training cut out of it.

A view is a uint8 tensor (3, S, S): networks convert to float and normalize for themselves, since
each was trained with statistics of its own. The published training view is RandomResizedCrop with
torchvision's defaults (at least 8 % of the area) and a horizontal flip, nothing else (CompRess,
section 4); what a student sees by default is milder (`distill.training.configuration`).
Self-supervised pre-training compares two views of an image. "photo" is the published, asymmetric
augmentation (SimCLR, appendix A; BYOL, appendix B): the two views differ in blur and solarization.

Limits: geometry only, on PIL images, whose resampling is always antialiased; color is drawn here
and applied to whole batches, see `distill.data.distortions`.

Shapes: S side of the view in pixels, P parameters of one view's distortion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from PIL import Image
from torch import Tensor, nn

from distill.data.distortions import DistortionRanges, draw_distortions
from distill.device import require_torchvision
from distill.errors import DistillError, UnknownNameError

require_torchvision()
from torchvision.transforms import InterpolationMode, v2  # noqa: E402

View = Callable[[Image.Image], Tensor]

AUGMENTATIONS = ("crop-flip", "crop", "none")
PRETRAINING_AUGMENTATIONS = ("photo", "glyph")

_INTERPOLATIONS = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
# Least share of an image's area that a training view shows, by augmentation.
PUBLISHED_MIN_CROP_AREA = {"crop-flip": 0.08, "crop": 0.6}


def training_view(
    image_size: int,
    augmentation: str = "crop-flip",
    *,
    min_crop_area: float | None = None,
    crop_fraction: float = 0.875,
    interpolation: str = "bilinear",
) -> View:
    """Return the view a student learns from.

    >>> view = training_view(32, "crop")
    >>> view(Image.new("RGB", (60, 40))).shape
    torch.Size([3, 32, 32])

    Args:
        image_size: S, side of the view in pixels.
        augmentation: "crop-flip", the published one: a crop of 8 to 100 % of the image's area,
            stretched by up to 4:3, mirrored half of the time. "crop": a crop of 60 to 100 % and
            never mirrored, for digits, letters or signs: mirrored they say something else or
            nothing, and a tenth of one is a stroke that all of them share. "none": the evaluation
            view.
        min_crop_area: Least share of the image's area that a crop shows, in (0, 1]; None: that of
            the augmentation. Not for "none".
        crop_fraction: For "none", see `evaluation_view`.
        interpolation: "bilinear" or "bicubic".

    Returns:
        A function from an RGB image to a uint8 tensor (3, S, S); random ones draw from torch's
        global generator.

    Raises:
        UnknownNameError: An augmentation that is not in `AUGMENTATIONS`, or another interpolation.
        DistillError: `image_size`, `min_crop_area` or `crop_fraction` out of range.
    """
    _require_positive(image_size)
    if augmentation not in AUGMENTATIONS:
        raise UnknownNameError("augmentation", augmentation, AUGMENTATIONS)
    if augmentation == "none":
        return evaluation_view(image_size, crop_fraction=crop_fraction, interpolation=interpolation)
    least = PUBLISHED_MIN_CROP_AREA[augmentation] if min_crop_area is None else min_crop_area
    if not 0 < least <= 1:
        raise DistillError(
            f"the least area of a crop is {least:g} of the image; it must be in (0, 1]"
        )
    mode = _interpolation(interpolation)
    steps: list[nn.Module] = [
        v2.RandomResizedCrop(image_size, scale=(least, 1.0), interpolation=mode)
    ]
    if augmentation == "crop-flip":
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose([*steps, v2.PILToTensor()])


def evaluation_view(
    image_size: int, *, crop_fraction: float = 0.875, interpolation: str = "bilinear"
) -> View:
    """Return the view that embeddings are evaluated on: resized, then cropped at the center.

    Args:
        image_size: S, side of the view in pixels.
        crop_fraction: S over the length the shorter side is resized to, in (0, 1]; 0.875 is the
            published 224 of 256, 1 keeps the whole of a square image.
        interpolation: "bilinear" or "bicubic".

    Returns:
        A function from an RGB image to a uint8 tensor (3, S, S), without randomness.

    Raises:
        UnknownNameError: Another interpolation.
        DistillError: `image_size` or `crop_fraction` out of range.
    """
    _require_positive(image_size)
    if not 0 < crop_fraction <= 1:
        raise DistillError(f"the crop fraction is {crop_fraction}; it must be in (0, 1]")
    resize = v2.Resize(round(image_size / crop_fraction), _interpolation(interpolation))
    return v2.Compose([resize, v2.CenterCrop(image_size), v2.PILToTensor()])


def _interpolation(name: str) -> InterpolationMode:
    if name not in _INTERPOLATIONS:
        raise UnknownNameError("interpolation", name, _INTERPOLATIONS)
    return _INTERPOLATIONS[name]


def _require_positive(image_size: int) -> None:
    if image_size < 1:
        raise DistillError(f"the image size is {image_size} pixels; it must be at least 1")


PUBLISHED_SIZE = 224  # pixels; the blur's sigma is meant for this side
PHOTO_DISTORTIONS = DistortionRanges(
    jitter_probability=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    gray_probability=0.2,
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
        view: From an RGB image to a uint8 tensor (3, S, S), without the distortion.
        second_view: The same for the second view.
        draw: Draws both views' distortions float32 (2, P), see `distill.data.distortions`.
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
            is scaled with S. "glyph", for digits, letters or signs on black, where a mirror image
            means something else and a small crop nothing: the whole image turned by up to 15
            degrees, scaled by 0.75 to 1.2, moved by up to 10 % of S and sheared by up to 10
            degrees, with `GLYPH_DISTORTIONS`.

    Raises:
        UnknownNameError: An augmentation that is not in `PRETRAINING_AUGMENTATIONS`.
        DistillError: `image_size` below 1.
    """
    _require_positive(image_size)
    steps: list[nn.Module]
    if augmentation == "photo":
        bicubic = InterpolationMode.BICUBIC
        steps = [
            v2.RandomResizedCrop(image_size, scale=(0.08, 1.0), interpolation=bicubic),
            v2.RandomHorizontalFlip(),
        ]
        # The blur that is published for 224 px stays the same for the eye at another side.
        low, high = PHOTO_DISTORTIONS.sigma
        factor = image_size / PUBLISHED_SIZE
        ranges = replace(PHOTO_DISTORTIONS, sigma=(factor * low, factor * high))
    elif augmentation == "glyph":
        affine = v2.RandomAffine(
            degrees=15,
            translate=(0.1, 0.1),
            scale=(0.75, 1.2),
            shear=(-10, 10, -10, 10),
            interpolation=InterpolationMode.BILINEAR,
        )
        steps = [v2.Resize((image_size, image_size), InterpolationMode.BICUBIC), affine]
        ranges = GLYPH_DISTORTIONS
    else:
        raise UnknownNameError("augmentation", augmentation, PRETRAINING_AUGMENTATIONS)
    view = v2.Compose([*steps, v2.PILToTensor()])
    return TwoViews(view, view, partial(draw_distortions, ranges))
