"""Colour, contrast and blur of a batch of images, each image by an amount of its own.

The operations of SimCLR (Chen et al. 2020, appendix A) and BYOL (Grill et al. 2020, appendix B), as
the published programs have them: brightness is added, contrast is relative to the mean of each
channel, saturation and hue are those of HSV. (Torchvision differs in the first three.) The one
difference: near the border the blur averages over the image alone, where the published zero padding
darkens the edges. Deliberate limits: results may leave [0, 1], by rounding or by much; who calls
clamps.

Shapes: B images, S side in pixels. Every operation takes images float32 (B, 3, S, S) in [0, 1] and
amounts float32 (B,) on one device and returns new images float32 (B, 3, S, S); an image's result
depends on that image and its amount alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R BT.601
# A channel over the hue in sextants is sign * |hue - centre| + offset, cut off at 0 and 1: highest
# up to one sextant from its own colour, lowest from two on. Red, at both ends, is upside down.
_CHANNEL_OVER_HUE = torch.tensor([[3.0, 2, 4], [1, -1, -1], [-1, 2, 2]]).view(3, 1, 3, 1, 1)
_TINY = 1e-12


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
    centre, sign, offset = _CHANNEL_OVER_HUE.to(images)
    height = (hue - centre).abs_().mul_(sign).add_(offset).clamp_(0, 1)
    return height.mul_(chroma).add_(low)


def to_grey(images: Tensor, _: Tensor) -> Tensor:
    """Give all channels the luma of ITU-R BT.601."""
    red, green, blue = (
        channel * weight
        for channel, weight in zip(images.split(1, dim=1), _GREY_WEIGHTS, strict=True)
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
    """Weight each pixel's neighbours along one dimension with taps (B, K)."""
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
