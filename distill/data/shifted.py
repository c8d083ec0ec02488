"""Images of known classes from elsewhere: ImageNet-A, -R, -v2, ObjectNet as class folders.

Deliberate limits: folders as they are unpacked, nothing is downloaded, and ObjectNet's red border
of one pixel is not cut off (the evaluation crop leaves it out, unless its crop fraction is 1).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.data.class_map import ClassMap, match_classes
from distill.data.folders import class_folders, read_class_folders
from distill.data.images import Images
from distill.errors import DistillError


@dataclass(frozen=True)
class ShiftedImages:
    """Images, and which training classes are right for each.

    Attributes:
        name: Of the set.
        images: All of them; labels are rows of `accepted`.
        index: Those that count.
        accepted: bool (F, C), the training classes that are right for a row.
    """

    name: str
    images: Images
    index: np.ndarray
    accepted: np.ndarray

    @property
    def num_left_out(self) -> int:
        """How many class folders stand for no training class."""
        return int((~self.accepted.any(axis=1)).sum())

    @property
    def present(self) -> np.ndarray:
        """The training classes that are right for some image."""
        return np.flatnonzero(self.accepted.any(axis=0))


def open_shifted(folder: Path, classes: Sequence[str], class_map: ClassMap | None) -> ShiftedImages:
    """Open a folder of class folders.

    Args:
        folder: Holds the class folders.
        classes: Training classes by label.
        class_map: What the folders' names stand for; None: they are training classes.

    Raises:
        DistillError: No such folder, no images, or names that are not understood.
    """
    if not folder.is_dir():
        raise DistillError(
            f"no such folder: {folder}; --shifted takes folders that hold a folder per class"
        )
    folder = Path(os.path.abspath(folder))
    names = class_folders(folder)
    if not names:
        raise DistillError(f"{folder} holds no class folders; give the folder that holds them")
    accepted = match_classes(names, classes, class_map, what=str(folder))
    images = read_class_folders(folder, names, name=folder.name)
    assert images.labels is not None
    index = np.flatnonzero(np.any(accepted[images.labels], axis=1))
    return ShiftedImages(folder.name, images, index, accepted)
