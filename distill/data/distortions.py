"""Random distortions of color and sharpness, drawn with a view and applied to whole batches.

Cutting a view is work for the loader's processes; color is arithmetic, which a device does better
for many images at once. So a view comes with the parameters of its distortion, drawn from the
generator of the view, and `distort` applies them in the process that trains. In this order, as the
published programs have them (SimCLR, Chen et al. 2020, appendix A; BYOL, Grill et al. 2020,
appendix B): brightness, contrast, saturation and hue in a random order, gray, blur, solarization.
Brightness is added, contrast is relative to the mean of each channel, saturation and hue are those
of HSV; torchvision differs in the first three. The one difference: near the border the blur
averages over the image alone, where the published zero padding darkens the edges.

Limits: no geometry (`distill.data.views`); float32 only. Single operations may leave [0, 1], by
rounding or by much; `distort` clamps after each.

Shapes: B images, S side in pixels, P parameters of one view's distortion. Every operation takes
images float32 (B, 3, S, S) in [0, 1] and amounts float32 (B,) on one device and returns new images
float32 (B, 3, S, S); an image's result depends on that image and its amount alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R BT.601
# A channel over the hue in sextants is sign * |hue - center| + offset, cut off at 0 and 1: highest
# up to one sextant from its own color, lowest from two on. Red, at both ends, is upside down.
_CHANNEL_OVER_HUE = torch.tensor([[3.0, 2, 4], [1, -1, -1], [-1, 2, 2]]).view(3, 1, 3, 1, 1)
_TINY = 1e-12
_ORDERS = torch.tensor(list(permutations(range(4))))
_Number = TypeVar("_Number", float, Tensor)
_CACHED_VALUES = 2**20  # float32, 4 MiB: on a CPU the temporaries stay in its cache


@dataclass(frozen=True)
class Distortion(Generic[_Number]):
    """The parameters of one distortion, floats, or of several, tensors of one shape.

    As one tensor, the parameters are its last dimension, in this order.

    Attributes:
        brightness: What is added to all pixels; 0 leaves them as they are.
        contrast: Factor of the distance from each channel's mean; 1 leaves it as it is.
        saturation: Factor of the saturation of HSV; 1 leaves it as it is.
        hue: What is added to the hue of HSV, in turns; 0 leaves it as it is.
        order: Which of the 24 orders of these four, in [0, 24), lexicographic: 0 is the order here,
            23 the reverse.
        gray: 1 for no color, else 0.
        sigma: Standard deviation of the blur in pixels; 0 for none.
        solarize: 1 to turn x into 1 - x from 0.5 on, else 0.
    """

    brightness: _Number
    contrast: _Number
    saturation: _Number
    hue: _Number
    order: _Number
    gray: _Number
    sigma: _Number
    solarize: _Number

    def values(self) -> list[_Number]:
        """Return the parameters in order."""
        return list(vars(self).values())


@dataclass(frozen=True)
class DistortionRanges:
    """What to draw distortions from; pairs of probabilities are for the first and second view.

    Attributes:
        jitter_probability: Of changing brightness, contrast, saturation and hue, all or none.
        brightness: What is added is from [-brightness, brightness].
        contrast: The factor is from [1 - contrast, 1 + contrast].
        saturation: The factor is from [1 - saturation, 1 + saturation].
        hue: The turn is from [-hue, hue].
        gray_probability: Of losing all color.
        blur_probability: Of a blur.
        sigma: Lowest and highest standard deviation of a blur in pixels.
        solarize_probability: Of solarization.
    """

    jitter_probability: float
    brightness: float
    contrast: float
    saturation: float = 0.0
    hue: float = 0.0
    gray_probability: float = 0.0
    blur_probability: tuple[float, float] = (0.0, 0.0)
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize_probability: tuple[float, float] = (0.0, 0.0)


def draw_distortions(ranges: DistortionRanges) -> Tensor:
    """Draw the distortions of an image's two views.

    >>> ranges = DistortionRanges(jitter_probability=0.8, brightness=0.4, contrast=0.4)
    >>> draw_distortions(ranges).shape
    torch.Size([2, 8])

    Args:
        ranges: What to draw from, all of it uniformly.

    Returns:
        Float32 (2, P), see `Distortion`; drawn from torch's global generator, always as many
        numbers, whatever the ranges.
    """
    return torch.tensor([_draw(ranges, view).values() for view in range(2)])


def _draw(ranges: DistortionRanges, view: int) -> Distortion[float]:
    # Python's numbers: this is a matter of microseconds, beside every image that is decoded.
    jitter, order, gray, blur, sigma, solarize, *strengths = torch.rand(10).tolist()
    if jitter < ranges.jitter_probability:
        brightness, contrast, saturation, hue = (2 * strength - 1 for strength in strengths)
    else:
        brightness = contrast = saturation = hue = 0.0
    lowest, highest = ranges.sigma
    return Distortion(
        brightness=ranges.brightness * brightness,
        contrast=1 + ranges.contrast * contrast,
        saturation=1 + ranges.saturation * saturation,
        hue=ranges.hue * hue,
        order=float(int(len(_ORDERS) * order)),
        gray=float(gray < ranges.gray_probability),
        sigma=lowest + (highest - lowest) * sigma if blur < ranges.blur_probability[view] else 0.0,
        solarize=float(solarize < ranges.solarize_probability[view]),
    )


def distort(images: Tensor, parameters: Tensor) -> Tensor:
    """Apply to each image its own distortion.

    >>> images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    >>> brighter = Distortion(0.5, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    >>> unchanged = Distortion(0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    >>> distort(images, torch.tensor([brighter.values(), unchanged.values()]))[:, 0, 0, 0]
    tensor([0.5000, 0.0000])

    Args:
        images: uint8 (B, 3, S, S), on any device.
        parameters: float32 (B, P), see `Distortion`; best on the CPU: which rows an operation
            concerns is found there, and parameters on a GPU would be waited for.

    Returns:
        Float32 (B, 3, S, S) in [0, 1], on the images' device, cut off at 0 and 1 after every
        operation. A row does not depend on the others; one that nothing changes is image / 255.
    """
    parameters = parameters.cpu()
    if not len(images):
        return images.float()
    if images.device.type != "cpu":
        return _distort(images, parameters)
    size = max(1, _CACHED_VALUES // images[0].numel())
    chunks = zip(images.split(size), parameters.split(size), strict=True)
    return torch.cat([_distort(*chunk) for chunk in chunks])


def _distort(images: Tensor, parameters: Tensor) -> Tensor:
    result = images.float().div_(255)
    for operation, concerned, amounts in _steps(Distortion(*parameters.unbind(1))):
        rows = concerned.nonzero().squeeze(1)
        if len(rows):
            some = amounts[rows].to(images.device, non_blocking=True)
            rows = rows.to(images.device, non_blocking=True)
            changed = operation(result.index_select(0, rows), some)
            result.index_copy_(0, rows, changed.clamp_(0, 1))
    return result


def _steps(
    distortion: Distortion[Tensor],
) -> Iterator[tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]]:
    """Yield operations in the order of applying them, whom they concern, bool (B,), and amounts."""
    jitters = (
        (add_brightness, distortion.brightness, 0),
        (scale_contrast, distortion.contrast, 1),
        (scale_saturation, distortion.saturation, 1),
        (rotate_hue, distortion.hue, 0),
    )
    for turns in _ORDERS[distortion.order.long()].unbind(1):
        for number, (operation, amounts, unchanged) in enumerate(jitters):
            yield operation, (turns == number) & (amounts != unchanged), amounts
    yield to_gray, distortion.gray > 0, distortion.gray
    yield blur, distortion.sigma > 0, distortion.sigma
    yield solarize, distortion.solarize > 0, distortion.solarize


def add_brightness(images: Tensor, amounts: Tensor) -> Tensor:
    """Add the amount, in [-1, 1], to all pixels."""
    return images + _per_image(amounts)


def scale_contrast(images: Tensor, amounts: Tensor) -> Tensor:
    """Multiply the distance from the mean of each channel by the amount, at least 0."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean).mul_(_per_image(amounts)).add_(mean)


def scale_saturation(images: Tensor, amounts: Tensor) -> Tensor:
    """Multiply the saturation of HSV, up to 1, by the amount, at least 0; value and hue stay."""
    high, low = _extremes(images)
    # Saturation is chroma / value: at 1 the lowest channel is 0.
    limit = high / (high - low).clamp_(min=_TINY)
    factor = torch.minimum(limit, _per_image(amounts))
    return (images - high).mul_(factor).add_(high)


def rotate_hue(images: Tensor, amounts: Tensor) -> Tensor:
    """Turn the hue of HSV by the amount in turns, usually [-0.5, 0.5]; value and chroma stay."""
    red, green, blue = images.split(1, dim=1)
    high, low = _extremes(images)
    chroma = high - low
    hue = (red - green).add_(chroma, alpha=4)
    # With weights of 0 and 1 lerp chooses, exactly, at a fraction of the time of torch.where.
    hue.lerp_((blue - red).add_(chroma, alpha=2), (green == high).float())
    hue.lerp_(green - blue, (red == high).float()).div_(chroma.clamp(min=_TINY))
    hue.add_(_per_image(6 * amounts))
    hue.sub_(torch.floor(hue / 6), alpha=6)  # [0, 6]: red, yellow, green, cyan, blue, magenta, red
    center, sign, offset = _CHANNEL_OVER_HUE.to(images)
    height = (hue - center).abs_().mul_(sign).add_(offset).clamp_(0, 1)
    return height.mul_(chroma).add_(low)


def to_gray(images: Tensor, _: Tensor) -> Tensor:
    """Give all channels the luma of ITU-R BT.601."""
    red, green, blue = (
        channel * weight
        for channel, weight in zip(images.split(1, dim=1), _GRAY_WEIGHTS, strict=True)
    )
    return (red + green + blue).repeat(1, 3, 1, 1)


def solarize(images: Tensor, _: Tensor) -> Tensor:
    """Turn x into 1 - x where x is at least 0.5."""
    return torch.minimum(images, 1 - images)  # the same, and ten times as fast as torch.where


def blur(images: Tensor, amounts: Tensor) -> Tensor:
    """Blur with a Gaussian whose standard deviation in pixels, above 0, is the amount.

    The kernel has S // 10 taps, rounded up to an odd number and at least 3: 23 for 224 pixels.
    """
    taps = _gaussian_taps(amounts, radius=max(images.shape[-1] // 10 // 2, 1))
    for dim in (2, 3):
        images = _filter(images, taps, dim)
    return images


def _gaussian_taps(sigma: Tensor, *, radius: int) -> Tensor:
    """Return the Gaussians (B, 2 * radius + 1), each with sum 1."""
    distance = torch.arange(-radius, radius + 1, device=sigma.device)
    return (-0.5 * (distance / sigma[:, None]) ** 2).softmax(dim=1)


def _filter(images: Tensor, taps: Tensor, dim: int) -> Tensor:
    """Weight each pixel's neighbors along one dimension with taps (B, K)."""
    size, radius = images.shape[dim], taps.shape[1] // 2
    padded = F.pad(images, (0, 0, radius, radius) if dim == 2 else (radius, radius))
    inside = F.pad(images.new_ones(size), (radius, radius))
    result, total = torch.zeros_like(images), images.new_zeros(len(images), size)
    # Sums of shifted images: two to four times as fast on a CPU as matrix products or convolutions.
    for shift, weights in enumerate(taps.unbind(1)):
        result.addcmul_(padded.narrow(dim, shift, size), _per_image(weights))
        total.addcmul_(inside[shift : shift + size], weights[:, None])
    return result.div_(total[:, None, :, None] if dim == 2 else total[:, None, None, :])


def _extremes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest and the lowest channel of each pixel, both (B, 1, S, S)."""
    red, green, blue = images.split(1, dim=1)  # amax over three strided channels is slower
    high = torch.maximum(torch.maximum(red, green), blue)
    return high, torch.minimum(torch.minimum(red, green), blue)


def _per_image(amounts: Tensor) -> Tensor:
    return amounts.view(-1, 1, 1, 1)
