"""Opens the images of a job and decides what a file that cannot be read means."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np

from distill.data.images import Images
from distill.data.scan import check_images, scan_is_cheap
from distill.engine.log import say
from distill.errors import BadImageError


def data_or_default(spec: str | None) -> str:
    """Return `spec`; without one what DISTILL_DATA names, else the embedded digits, saying so."""
    if spec is not None:
        return spec
    named = os.environ.get("DISTILL_DATA")
    if named is not None:
        say(f"no --data: using DISTILL_DATA, {named}")
        return named
    say("no --data: showing the pipeline on scikit-learn's 1,797 digits")
    return "digits"


class BadImages:
    """Fails at the first image that cannot be read, or counts and skips them.

    Args:
        policy: `fail` or `skip`.
    """

    def __init__(self, policy: Literal["fail", "skip"]) -> None:
        self.policy = policy
        self.skipped: set[str] = set()

    def good_indices(self, images: Images | None) -> np.ndarray:
        """Return the images to use: decoded once when that is cheap, else all of them unseen.

        No images give no indices.

        Raises:
            BadImageError: Policy `fail` and an image that cannot be read.
        """
        if images is None:
            return np.arange(0)
        everything = np.arange(len(images))
        if not scan_is_cheap(images):
            return everything
        good = check_images(images, on_bad=self.policy, progress=True)
        missing = np.setdiff1d(everything, good)
        self(tuple(images.describe(int(i)) for i in missing))
        return good

    def __call__(self, descriptions: Sequence[str]) -> None:
        """Receive the names of images that could not be read.

        Raises:
            BadImageError: Policy `fail` and at least one name.
        """
        if descriptions and self.policy == "fail":
            raise BadImageError(
                f"{descriptions[0]} cannot be read as an image; remove it, or pass "
                "--on-bad-image skip"
            )
        for description in set(descriptions) - self.skipped:
            say(f"skipped {description}: cannot be read as an image")
        self.skipped.update(descriptions)
