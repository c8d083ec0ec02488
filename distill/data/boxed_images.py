"""Loads the images of a VOC split with their boxes, for a detector.

VOC counts pixels from 1 and the last one belongs to the box; a detector measures from the image's
left and upper edge, in lengths: (xmin - 1, ymin - 1, xmax, ymax). Images keep their size; a
detector scales them itself. For training half of the images are mirrored; which ones depends on
(seed, draw) alone. As usual on VOC, difficult objects are not learnt, nor are images without any
other.

Shapes: N images, G objects, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.data.views import worker_settings
from distill.data.voc import Objects, VocImages
from distill.errors import BadImageError, DistillError

_FROM_VOC = np.array([-1.0, -1.0, 0.0, 0.0])


class BoxedImage(NamedTuple):
    """An image with the objects that are to be found in it.

    Attributes:
        pixels: uint8 (3, H, W).
        boxes: float32 (G, 4), x1, y1, x2, y2 from the image's upper left corner.
        classes: int64 (G,).
        number: Position of the image in its set.
    """

    pixels: Tensor
    boxes: Tensor
    classes: Tensor
    number: int


@dataclass(frozen=True)
class BoxedBatch:
    """Images that could be read, and the descriptions of those that could not."""

    images: list[BoxedImage]
    bad: tuple[str, ...]


class _BoxedImages(Dataset):
    """The images at keys (number, mirrored); those that cannot be read are a description."""

    def __init__(self, images: VocImages) -> None:
        self.images = images

    def __getitem__(self, key: tuple[int, bool]) -> BoxedImage | str:
        number, is_mirrored = key
        try:
            pixels = np.array(self.images.load(number))
        except BadImageError:
            return self.images.describe(number)
        objects = self.images.objects[number]
        boxes = _learnt_boxes(objects)
        if is_mirrored:
            pixels, boxes = mirrored(pixels, boxes)
        return BoxedImage(
            torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            torch.from_numpy(boxes.astype(np.float32)),
            torch.from_numpy(objects.classes[~objects.difficult]),
            number,
        )


def training_batches(
    images: VocImages,
    index: np.ndarray,
    *,
    num_batches: int,
    batch_size: int,
    seed: int,
    num_workers: int,
) -> DataLoader[BoxedBatch]:
    """Return a loader of random batches: every image once before any a second time.

    Args:
        images: A split.
        index: The images to learn from; those without an object to learn are left out.
        num_batches: Batches in all.
        batch_size: Images in each.
        seed: Of order and mirroring.
        num_workers: Loader processes.

    Raises:
        DistillError: No image has an object to learn.
    """
    useful = np.array([i for i in index if not images.objects[i].difficult.all()], dtype=np.int64)
    if len(useful) == 0:
        raise DistillError(
            f"no image of {images.name} has an object that is not difficult, so that there is "
            "nothing to learn; name another list with --train-split"
        )
    generator = np.random.default_rng(seed)
    num_rounds = -(-num_batches * batch_size // len(useful))
    order = np.concatenate([generator.permutation(useful) for _ in range(num_rounds)])
    flips = generator.random(len(order)) < 0.5
    keys = list(zip(order.tolist(), flips.tolist(), strict=True))
    starts = range(0, num_batches * batch_size, batch_size)
    return _loader(images, [keys[start : start + batch_size] for start in starts], num_workers)


def evaluation_batches(
    images: VocImages, index: np.ndarray, *, batch_size: int, num_workers: int
) -> DataLoader[BoxedBatch]:
    """Return a loader over images in order, each once and as it is."""
    keys = [(int(i), False) for i in index]
    starts = range(0, len(keys), batch_size)
    return _loader(images, [keys[start : start + batch_size] for start in starts], num_workers)


def to_voc(boxes: np.ndarray) -> np.ndarray:
    """Return a detector's boxes (M, 4) as VOC writes them."""
    return boxes - _FROM_VOC


def mirrored(pixels: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror an image (H, W, 3) and its boxes (G, 4) left to right."""
    width = pixels.shape[1]
    turned = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [width, 0, width, 0]
    return pixels[:, ::-1], turned


def _learnt_boxes(objects: Objects) -> np.ndarray:
    return objects.corners[~objects.difficult] + _FROM_VOC


def _loader(
    images: VocImages, batches: list[list[tuple[int, bool]]], num_workers: int
) -> DataLoader[BoxedBatch]:
    return DataLoader(
        _BoxedImages(images),
        batch_sampler=batches,
        collate_fn=_collate,
        **worker_settings(images, num_workers),
    )


def _collate(items: Sequence[BoxedImage | str]) -> BoxedBatch:
    return BoxedBatch(
        [item for item in items if isinstance(item, BoxedImage)],
        tuple(item for item in items if isinstance(item, str)),
    )
