"""The fifteen corruptions of ImageNet-C, computed on the fly from a seed.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (ICLR 2019); computed by the package imagecorruptions-imaug, whose strengths are
those of the paper for images of 224 px.

Limits: at other sizes the same strengths are used and mean something else; the published set is
JPEG files of quality 85 that were corrupted once, so that its numbers are near these but not the
same.

Shapes: H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from distill.errors import DistillError, UnknownNameError

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)
MIN_IMAGE_SIZE = 32  # of the package
PUBLISHED_IMAGE_SIZE = 224
PACKAGE = "imagecorruptions-imaug"
# These draw from generators of their own, which numpy's global seed does not reach.
_SEEDED_BY_ARGUMENT = ("impulse_noise", "glass_blur")


def corrupt(pixels: np.ndarray, corruption: str, severity: int, *, seed: int) -> np.ndarray:
    """Return a corrupted copy of an image; the same for the same arguments.

    Args:
        pixels: uint8 (H, W, 3), H and W at least 32.
        corruption: One of `CORRUPTIONS`.
        severity: From 1 to 5.
        seed: Of what is random in it, from 0 to 2^32 - 1; numpy's global generator stays as it is.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DistillError: The package is not installed; see `require_corruptions` and
            `require_image_size`.
    """
    require_corruptions([corruption], [severity])
    require_image_size(min(pixels.shape[:2]), what="the image")
    settings: dict[str, Any] = {"severity": severity, "corruption_name": corruption}
    if corruption in _SEEDED_BY_ARGUMENT:
        settings["seed"] = seed
    package = _package()
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        corrupted = package.corrupt(pixels, **settings)
    finally:
        np.random.set_state(state)
    return np.array(corrupted)  # some come as a view of a Pillow image, which is read-only


def prepare(corruptions: Sequence[str]) -> str:
    """Import what corruptions need and compile what is compiled on first use.

    Called before loader processes are forked, which then need not do it themselves.

    Args:
        corruptions: Those that will be used.

    Returns:
        Name and version of the package, which results depend on.

    Raises:
        DistillError: It is not installed.
    """
    _package()
    if "glass_blur" in corruptions:
        smallest = np.zeros((MIN_IMAGE_SIZE, MIN_IMAGE_SIZE, 3), np.uint8)
        for severity in (1, 3):  # with other types of numbers, and thus compiled anew
            corrupt(smallest, "glass_blur", severity, seed=0)
    return f"{PACKAGE} {version(PACKAGE)}"


def require_corruptions(corruptions: Sequence[str], severities: Sequence[int]) -> None:
    """Refuse corruptions and severities that there are not, or that are named twice.

    Raises:
        DistillError: With the nearest match for a name.
    """
    for corruption in corruptions:
        if corruption not in CORRUPTIONS:
            raise UnknownNameError("corruption", corruption, CORRUPTIONS)
    for severity in severities:
        if severity not in SEVERITIES:
            raise DistillError(f"the severity is {severity}; it must be 1, 2, 3, 4 or 5")
    for kind, names in (("corruption", corruptions), ("severity", severities)):
        twice = [name for position, name in enumerate(names) if name in names[:position]]
        if twice:
            raise DistillError(f"the {kind} {twice[0]} is named twice; name it once")


def require_image_size(size: int, *, what: str) -> None:
    """Refuse images that are too small to be corrupted.

    Args:
        size: Side in pixels.
        what: Whose images, for the message.

    Raises:
        DistillError: Below 32.
    """
    if size < MIN_IMAGE_SIZE:
        raise DistillError(
            f"{what} has {size} x {size} pixels, corruptions need at least {MIN_IMAGE_SIZE} x "
            f"{MIN_IMAGE_SIZE}; take a network of a larger image size, or leave this one out "
            "(--no-teacher)"
        )


def _package() -> Any:
    """Import the package, in a way that suits loader processes."""
    try:
        version(PACKAGE)  # the older imagecorruptions has the same module, and fails
        import cv2
        import imagecorruptions
    except (ImportError, PackageNotFoundError) as error:
        raise DistillError(
            f"corruptions need {PACKAGE}, which cannot be used ({error}); install it with "
            "pip install 'distill-vision[robustness]'"
        ) from error
    cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork, and loaders are the parallelism
    return imagecorruptions
