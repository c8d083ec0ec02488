"""Subsets of labeled training images: a share of every class, or a published list.

A share is class-balanced: each class contributes its part of the images, rounded by largest
remainders so that the total is right, and at least one image. The images of a class are taken in an
order that depends on the seed alone, so that the 1 % of a seed is contained in its 10 %. Limit:
this holds from about twice the share on; of nearly equal shares (0.10 and 0.11) the larger may take
one image fewer of a class.

Lists are those of SimCLR (Chen et al., ICML 2020), one file name per line: `n01440764_10026.JPEG`.

Shapes: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.data.sources import drawn_by_class
from distill.errors import DistillError

_SEVERAL = -1  # several images have the file name


def class_balanced_subset(labels: np.ndarray, fraction: float, *, seed: int) -> np.ndarray:
    """Choose a share of every class.

    Args:
        labels: (N,) classes, at least 0.
        fraction: The share, above 0 and at most 1.
        seed: At least 0.

    Returns:
        Positions of the chosen images, int64, sorted: round(fraction N) of them, or more where
        every class gives its one.

    Raises:
        DistillError: `fraction` out of range.

    Example:
        >>> import numpy as np
        >>> len(class_balanced_subset(np.repeat([0, 1], [30, 70]), 0.1, seed=0))
        10
    """
    if not 0 < fraction <= 1:
        raise DistillError(
            f"--labels is {fraction:g}, it must be a share above 0 and at most 1, such as 0.01 for "
            "1 %, or a file of image names"
        )
    by_class, rank_in_class = drawn_by_class(labels, np.random.default_rng([seed, 0]))
    counts = np.bincount(labels)
    quotas = fraction * counts
    shares = np.maximum(np.floor(quotas).astype(np.int64), np.minimum(counts, 1))
    num_left = max(0, round(fraction * len(labels)) - shares.sum())
    # A class that was rounded up to one image has no remainder left and comes last.
    draws = np.random.default_rng([seed, 1]).random(len(counts))
    shares[np.lexsort((draws, shares - quotas))[:num_left]] += 1
    return np.sort(by_class[rank_in_class < shares[labels[by_class]]])


def held_out_rows(labels: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a tenth of every class to choose a setting on, the same for the same seed.

    A class with one image keeps it for fitting.

    Args:
        labels: (N,) classes, at least 0.
        seed: At least 0.

    Returns:
        Positions to fit on and positions held out, int64, sorted, N together.

    Raises:
        DistillError: No class has two images.
    """
    divisible = np.flatnonzero(np.bincount(labels)[labels] > 1)
    if len(divisible) == 0:
        raise DistillError(
            f"none of {len(labels)} labeled images can be held out to choose a setting on, since "
            "no class has two; give more labels, or leave out --sweep and --method logistic"
        )
    chosen = class_balanced_subset(labels[divisible], 0.1, seed=seed)
    held_out = divisible[chosen]
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def read_names(file: Path) -> list[str]:
    """Read a list of image names, one per line; empty lines are skipped.

    Raises:
        DistillError: A file that cannot be read as text, or without a name.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise DistillError(
            f"--labels {file} is neither a number nor a list that can be read ({reason}); give a "
            "share above 0 and at most 1, or a text file with one image name per line"
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DistillError(f"--labels {file} names no image; put one file name on each line")
    return names


def named_images(names: Sequence[str], paths: Sequence[str], *, source: str) -> np.ndarray:
    """Find images by relative path, or by file name where it is the only one of that name.

    Args:
        names: File names such as `n01440764_10026.JPEG`, or paths below the set's folder such as
            `n01440764/n01440764_10026.JPEG`.
        paths: (N,) paths of the images below the set's folder, with "/" between their parts.
        source: Name of the list, for messages.

    Returns:
        Positions in `paths`, int64, sorted, each once.

    Raises:
        DistillError: Names that no image has, or that several images have; the first is named.
    """
    position_of: dict[str, int] = {}
    for position, path in enumerate(paths):
        base = path.rpartition("/")[2]
        position_of[base] = _SEVERAL if base in position_of else position
    position_of.update({path: position for position, path in enumerate(paths)})
    missing = [name for name in names if name not in position_of]
    if missing:
        raise DistillError(
            f"{source}: {len(missing)} of {len(names)} names are not among the training images, "
            f"the first is {missing[0]}; give the file names or the paths below train/"
        )
    found = np.array([position_of[name] for name in names], dtype=np.int64)
    if (found == _SEVERAL).any():
        ambiguous = names[int(np.argmax(found == _SEVERAL))]
        raise DistillError(
            f"{source}: several training images are called {ambiguous}; give their paths below "
            "train/, such as CLASS/NAME"
        )
    return np.unique(found)
