"""Random distortions of colour and sharpness: drawn with the view, applied later to whole batches.

Cutting a view is work for the loader's processes; colour is arithmetic, which a device does better
for many images at once. So a view comes with the parameters of its distortion, drawn from the
generator of the view, and `distort` applies them in the process that trains. In this order, as
published (SimCLR, appendix A; BYOL, appendix B): brightness, contrast, saturation and hue in a
random order, grey, blur, solarization; see `distill.data.image_operations`. Deliberate limits: no
geometry, float32 only.

Shapes: B images, S side in pixels, P parameters of one view's distortion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Generic, TypeVar

import torch
from torch import Tensor

from distill.data import image_operations as operations

_ORDERS = torch.tensor(list(permutations(range(4))))
_Number = TypeVar("_Number", float, Tensor)
_CACHED_VALUES = 2**20  # float32, 4 MiB: on a CPU the temporaries stay in its cache


@dataclass(frozen=True)
class Distortion(Generic[_Number]):
    """The parameters of one distortion, floats, or of several, tensors of one shape.

    As one tensor, the parameters are its last dimension, in this order.

    Attributes:
        brightness: what is added to all pixels; 0 leaves them as they are.
        contrast: factor of the distance from each channel's mean; 1 leaves it as it is.
        saturation: factor of the saturation of HSV; 1 leaves it as it is.
        hue: what is added to the hue of HSV, in turns; 0 leaves it as it is.
        order: which of the 24 orders of these four, in [0, 24), lexicographic: 0 is the order here,
            23 the reverse.
        grey: 1 for no colour, else 0.
        sigma: standard deviation of the blur in pixels; 0 for none.
        solarize: 1 to turn x into 1 - x from 0.5 on, else 0.
    """

    brightness: _Number
    contrast: _Number
    saturation: _Number
    hue: _Number
    order: _Number
    grey: _Number
    sigma: _Number
    solarize: _Number

    def values(self) -> list[_Number]:
        """Return the parameters in order."""
        return list(vars(self).values())


@dataclass(frozen=True)
class DistortionRanges:
    """What to draw distortions from; pairs of probabilities are for the first and second view.

    Attributes:
        jitter_probability: of changing brightness, contrast, saturation and hue, all or none.
        brightness: added is a number from [-brightness, brightness].
        contrast: the factor is from [1 - contrast, 1 + contrast].
        saturation: the factor is from [1 - saturation, 1 + saturation].
        hue: the turn is from [-hue, hue].
        grey_probability: of losing all colour.
        blur_probability: of a blur.
        sigma: lowest and highest standard deviation of a blur in pixels.
        solarize_probability: of solarization.
    """

    jitter_probability: float
    brightness: float
    contrast: float
    saturation: float = 0.0
    hue: float = 0.0
    grey_probability: float = 0.0
    blur_probability: tuple[float, float] = (0.0, 0.0)
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize_probability: tuple[float, float] = (0.0, 0.0)


def draw_distortions(ranges: DistortionRanges) -> Tensor:
    """Draw the distortions of an image's two views.

    Args:
        ranges: what to draw from, all of it uniformly.

    Returns:
        Float32 (2, P), see `Distortion`; drawn from torch's global generator, always as many
        numbers, whatever the ranges.
    """
    return torch.tensor([_draw(ranges, view).values() for view in range(2)])


def _draw(ranges: DistortionRanges, view: int) -> Distortion[float]:
    # Python's numbers: this is a matter of microseconds, beside every image that is decoded.
    jitter, order, grey, blur, sigma, solarize, *strengths = torch.rand(10).tolist()
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
        grey=float(grey < ranges.grey_probability),
        sigma=lowest + (highest - lowest) * sigma if blur < ranges.blur_probability[view] else 0.0,
        solarize=float(solarize < ranges.solarize_probability[view]),
    )


def distort(images: Tensor, parameters: Tensor) -> Tensor:
    """Apply to each image its own distortion.

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
        (operations.add_brightness, distortion.brightness, 0),
        (operations.scale_contrast, distortion.contrast, 1),
        (operations.scale_saturation, distortion.saturation, 1),
        (operations.rotate_hue, distortion.hue, 0),
    )
    for turns in _ORDERS[distortion.order.long()].unbind(1):
        for number, (operation, amounts, unchanged) in enumerate(jitters):
            yield operation, (turns == number) & (amounts != unchanged), amounts
    yield operations.to_grey, distortion.grey > 0, distortion.grey
    yield operations.blur, distortion.sigma > 0, distortion.sigma
    yield operations.solarize, distortion.solarize > 0, distortion.solarize
