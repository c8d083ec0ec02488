"""The images of a job: where they come from, which are trained on, what a bad file means."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from distill import distributed
from distill.config import ImageOptions
from distill.data.images import Images
from distill.data.scan import check_images, scan_is_cheap
from distill.data.sources import ImageData, hold_out
from distill.errors import BadImageError, DistillError
from distill.terminal import say

_FEW = 10


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
    """Fails at the first image that cannot be read, or counts and skips them, up to a bound.

    Args:
        policy: `fail` or `skip`.
        most: How many may be skipped; None: a hundredth of the images, and at least ten. More are
            no accident: a mount that went away, a folder of something else.
    """

    def __init__(self, policy: Literal["fail", "skip"], most: int | None = None) -> None:
        self.policy = policy
        self.skipped: set[str] = set()
        self._most, self._num_images = most, 0

    @property
    def most(self) -> int:
        """How many may be skipped."""
        return max(_FEW, self._num_images // 100) if self._most is None else self._most

    def expect(self, num_images: int) -> None:
        """Count images of which some may be skipped."""
        self._num_images += num_images

    def good_indices(self, images: Images | None) -> np.ndarray:
        """Return the images to use: decoded once when that is cheap, else all of them unseen.

        No images give no indices.

        Raises:
            BadImageError: Policy `fail` and an image that cannot be read.
        """
        if images is None:
            return np.arange(0)
        everything = np.arange(len(images))
        self.expect(len(images))
        if not scan_is_cheap(images):
            return everything
        good = check_images(images, on_bad=self.policy, progress=True)
        missing = np.setdiff1d(everything, good)
        self(tuple(images.describe(int(i)) for i in missing))
        return good

    def __call__(self, descriptions: Sequence[str]) -> None:
        """Receive the names of images that could not be read.

        Raises:
            BadImageError: Policy `fail` and at least one name, or more of them than may be skipped.
        """
        if descriptions and self.policy == "fail":
            raise BadImageError(
                f"{descriptions[0]} cannot be read as an image; remove it, or pass "
                "--on-bad-image skip"
            )
        self._add(set(descriptions))

    def share(self) -> None:
        """Let every rank know what any of them skipped; all ranks call it together."""
        self._add(distributed.union(self.skipped))

    def recall(self, descriptions: Sequence[str]) -> None:
        """Count what an earlier sitting of the run skipped, and has named already."""
        self.skipped.update(descriptions)

    def _add(self, descriptions: set[str]) -> None:
        for description in sorted(descriptions - self.skipped):
            say(f"skipped {description}: cannot be read as an image")
            self.skipped.add(description)
            if len(self.skipped) > self.most:
                raise BadImageError(
                    f"{len(self.skipped)} images cannot be read, the last of them {description}, "
                    f"and at most {self.most} may be skipped; look what happened to them, or pass "
                    "--max-bad-images"
                )


@dataclass(frozen=True)
class TrainingImages:
    """The images of a training job.

    Attributes:
        data: The dataset.
        train_index: The training images that can be read.
        val_index: The validation images that can be read.
        trained: Those of `train_index` that are trained on.
        held_out: Those that are not.
        bad_images: What happens to files that cannot be read.
    """

    data: ImageData
    train_index: np.ndarray
    val_index: np.ndarray
    trained: np.ndarray
    held_out: np.ndarray
    bad_images: BadImages


def training_images(data: ImageData, options: ImageOptions, *, seed: int) -> TrainingImages:
    """Find the readable images of a dataset and hold a part of the training images out.

    Raises:
        BadImageError: An image that cannot be read, when that is to end the job.
        DistillError: Fewer than two images are left to train on.
    """
    bad_images = BadImages(options.on_bad_image, options.max_bad_images)
    usable = bad_images.good_indices(data.train)
    trained, held_out = hold_out(data.train, options.holdout, seed=seed)
    trained, held_out = np.intersect1d(trained, usable), np.intersect1d(held_out, usable)
    if len(trained) < 2:
        raise DistillError(
            f"{data.name} leaves {len(trained)} images to train on, at least 2 are needed; name a "
            "folder with more images or lower --holdout"
        )
    return TrainingImages(
        data=data,
        train_index=usable,
        val_index=bad_images.good_indices(data.val),
        trained=trained,
        held_out=held_out,
        bad_images=bad_images,
    )
