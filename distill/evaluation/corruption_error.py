"""Errors under corruption: their mean, and the mean corruption error (mCE).

Source: Hendrycks & Dietterich (ICLR 2019), section 4. The corruption error of a corruption is the
sum of the errors at its five severities over the same sum for AlexNet, mCE its mean over the
fifteen corruptions, so that AlexNet scores 1. Errors are fractions of 1; the paper prints percent.
AlexNet's errors are those of ImageNet's 1,000 classes at 224 px: nowhere else is mCE defined.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from distill.data.class_map import is_imagenet
from distill.data.corruptions import CORRUPTIONS, PUBLISHED_IMAGE_SIZE, SEVERITIES
from distill.errors import DistillError

Errors = Mapping[str, Mapping[int, float]]
"""Error by corruption and severity."""

ALEXNET_ERRORS = dict(
    zip(
        CORRUPTIONS,
        (
            *(0.886428, 0.894468, 0.922640, 0.819880, 0.826268),
            *(0.785948, 0.798360, 0.866816, 0.826572, 0.819324),
            *(0.564592, 0.853204, 0.646056, 0.717840, 0.606500),
        ),
        strict=True,
    )
)
"""AlexNet's error by corruption, the mean over the five severities."""


def corruption_means(errors: Errors) -> dict[str, float]:
    """Return the mean error over the severities of every corruption, in the order given."""
    return {name: float(np.mean(list(by.values()))) for name, by in errors.items()}


def mean_error(errors: Errors) -> float:
    """Return the mean over corruptions of `corruption_means`: every corruption counts alike.

    Raises:
        DistillError: There are none.
    """
    if not errors:
        raise DistillError("no corruption was measured, a mean needs one; name one or more")
    return float(np.mean(list(corruption_means(errors).values())))


def mean_corruption_error(errors: Errors) -> float:
    """Return mCE, 1 for AlexNet.

    Args:
        errors: Of all fifteen corruptions at all five severities, on ImageNet at 224 px.

    Raises:
        DistillError: One is missing.
    """
    missing = [
        f"{name} at severity {severity}"
        for name in CORRUPTIONS
        for severity in SEVERITIES
        if severity not in errors.get(name, {})
    ]
    if missing:
        raise DistillError(
            f"mCE needs all fifteen corruptions at five severities, {missing[0]} is missing; "
            "leave out --corruptions and --severities"
        )
    means = corruption_means(errors)
    return float(np.mean([means[name] / ALEXNET_ERRORS[name] for name in CORRUPTIONS]))


def why_no_mce(errors: Errors, classes: tuple[str, ...] | None, image_size: int) -> str | None:
    """Return why mCE is not defined, None when it is.

    Args:
        errors: What was measured.
        classes: Names of the training classes.
        image_size: Side of the network's view in pixels.
    """
    if classes is None or not is_imagenet(classes):
        return "AlexNet's errors are known for ImageNet's 1,000 classes only"
    if image_size != PUBLISHED_IMAGE_SIZE:
        return f"AlexNet's errors are known for {PUBLISHED_IMAGE_SIZE} px only, not {image_size} px"
    complete = all(set(SEVERITIES) <= set(errors.get(name, {})) for name in CORRUPTIONS)
    return None if complete else "it needs all fifteen corruptions at five severities"
