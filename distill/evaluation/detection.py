"""Fine-tunes a detector on a VOC split, detects objects and scores the boxes.

VOC counts pixels from 1 and includes the last one; a detector uses continuous coordinates from the
upper left corner of the image: (xmin - 1, ymin - 1, xmax, ymax). Images keep their size; a detector
scales them itself. In training half of the images are mirrored, depending on (seed, draw) alone. As
usual on VOC, difficult objects are not trained on, nor are images without any other object.

Schedule: SGD with momentum, learning rate 0.02 for 16 images and in proportion for fewer, warmed up
linearly over 100 steps, multiplied by 0.1 after three quarters and after eleven twelfths of the
steps, as in the VOC transfer of MoCo (He et al., CVPR 2020). Limits: one process, float32; an
interrupted run starts again.

Shapes: N images, G objects, H x W pixels, C classes, M boxes found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.data.voc import Objects, VocImages
from distill.data.workers import worker_settings
from distill.embeddings.embed import InferenceConfig
from distill.errors import BadImageError, DistillError, NonFiniteLossError
from distill.evaluation.average_precision import RULES, Boxes, Rule, detection_ap
from distill.evaluation.detector import Detector
from distill.terminal import progress_bar

_FROM_VOC = np.array([-1.0, -1.0, 0.0, 0.0])


class BoxedImage(NamedTuple):
    """An image with its objects.

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
    """Images by key (number, mirrored); a description for an image that cannot be read."""

    def __init__(self, images: VocImages) -> None:
        self.images = images

    def __getitem__(self, key: tuple[int, bool]) -> BoxedImage | str:
        number, is_mirrored = key
        try:
            pixels = np.array(self.images.load(number))
        except BadImageError:
            return self.images.describe(number)
        objects = self.images.objects[number]
        boxes = _learned_boxes(objects)
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
    num_workers: int | None,
) -> DataLoader[BoxedBatch]:
    """Return a loader of random batches: every image once before any a second time.

    Args:
        images: A split.
        index: The images to train on; those without an object to train on are left out.
        num_batches: Batches in all.
        batch_size: Images in each.
        seed: Of order and mirroring.
        num_workers: Loader processes.

    Raises:
        DistillError: No image has an object to train on.
    """
    useful = np.array([i for i in index if not images.objects[i].difficult.all()], dtype=np.int64)
    if len(useful) == 0:
        raise DistillError(
            f"no image of {images.name} has an object that is not difficult, so that there is "
            "nothing to train on; name another list with --train-split"
        )
    generator = np.random.default_rng(seed)
    num_rounds = -(-num_batches * batch_size // len(useful))
    order = np.concatenate([generator.permutation(useful) for _ in range(num_rounds)])
    flips = generator.random(len(order)) < 0.5
    keys = list(zip(order.tolist(), flips.tolist(), strict=True))
    starts = range(0, num_batches * batch_size, batch_size)
    return _loader(images, [keys[start : start + batch_size] for start in starts], num_workers)


def evaluation_batches(
    images: VocImages, index: np.ndarray, *, batch_size: int, num_workers: int | None
) -> DataLoader[BoxedBatch]:
    """Return a loader over images in order, each once, not mirrored."""
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


def _learned_boxes(objects: Objects) -> np.ndarray:
    return objects.corners[~objects.difficult] + _FROM_VOC


def _loader(
    images: VocImages, batches: list[list[tuple[int, bool]]], num_workers: int | None
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


_RATE_PER_IMAGE = 0.02 / 16
_WARMUP_STEPS = 100
_DECAY, _DECAY_AFTER = 0.1, (3 / 4, 11 / 12)
_IMAGES_PER_PASS = 4


def fine_tune(
    detector: Detector,
    images: VocImages,
    index: np.ndarray,
    inference: InferenceConfig,
    *,
    steps: int = 18_000,
    batch_size: int = 8,
    learning_rate: float | None = None,
    weight_decay: float = 1e-4,
    seed: int = 0,
) -> np.ndarray:
    """Train all layers of a detector, in place.

    Args:
        detector: On the device of `inference`.
        images: A split.
        index: The images to train on.
        inference: Device and loading.
        steps: Steps of the optimizer.
        batch_size: Images per step.
        learning_rate: Peak; None: 0.02 x batch_size / 16.
        weight_decay: Of all parameters.
        seed: Of the order, mirroring and sampling of regions.

    Returns:
        The loss of every step, float64; steps without a readable image are left out.

    Raises:
        NonFiniteLossError: A loss that is not finite, with its step.
        DistillError: No image has an object to train on.
    """
    batches = training_batches(
        images,
        index,
        num_batches=steps,
        batch_size=batch_size,
        seed=seed,
        num_workers=inference.num_workers,
    )
    rate = learning_rate or _RATE_PER_IMAGE * batch_size
    optimizer = torch.optim.SGD(
        detector.parameters(), lr=rate, momentum=0.9, weight_decay=weight_decay
    )
    factor = learning_rate_factor(steps)
    torch.manual_seed(seed)  # torchvision samples anchors and regions globally
    detector.train()
    losses: list[float] = []
    with progress_bar(steps, description="fine-tune detector", unit="step") as bar:
        for step, batch in enumerate(batches):
            _report_bad(batch, inference)
            for group in optimizer.param_groups:
                group["lr"] = rate * factor(step)
            if batch.images:
                losses.append(_step(detector, optimizer, batch, inference.device, step))
                bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            bar.update()
    return np.array(losses)


def learning_rate_factor(steps: int) -> Callable[[int], float]:
    """Return the factor on the peak learning rate by step, counted from 0."""
    warmup = min(_WARMUP_STEPS, steps // 10)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return _DECAY ** sum(step >= share * steps for share in _DECAY_AFTER)

    return factor


def _step(
    detector: Detector,
    optimizer: torch.optim.Optimizer,
    batch: BoxedBatch,
    device: torch.device,
    step: int,
) -> float:
    targets = [
        {"boxes": image.boxes.to(device), "labels": image.classes.to(device) + 1}
        for image in batch.images
    ]
    losses = detector(_pixels(batch, device), targets)
    assert isinstance(losses, dict)
    loss = torch.stack(list(losses.values())).sum()
    value = loss.item()
    if not math.isfinite(value):
        raise NonFiniteLossError(
            f"the detector's loss is {value} at step {step}; lower --learning-rate"
        )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return value


@dataclass(frozen=True)
class Detections:
    """Detections in a set of images.

    Attributes:
        boxes: Of all classes, M in all, corners as VOC writes them.
        classes: int64 (M,), from 0.
        scores: float64 (M,), in [0, 1].
        seen: int64, the images that could be read.
    """

    boxes: Boxes
    classes: np.ndarray
    scores: np.ndarray
    seen: np.ndarray


@torch.no_grad()
def detect(
    detector: Detector, images: VocImages, index: np.ndarray, inference: InferenceConfig
) -> Detections:
    """Detect objects in images; leaves the detector in evaluation mode."""
    detector.eval()
    batches = evaluation_batches(
        images, index, batch_size=_IMAGES_PER_PASS, num_workers=inference.num_workers
    )
    found: list[dict[str, Tensor]] = []
    seen: list[int] = []
    with progress_bar(len(index), description="detect") as bar:
        for batch in batches:
            _report_bad(batch, inference)
            if batch.images:
                found += detector(_pixels(batch, inference.device))
                seen += [image.number for image in batch.images]
            bar.update(len(batch.images) + len(batch.bad))
    counts = [len(one["scores"]) for one in found]
    corners = _joined([one["boxes"] for one in found], (0, 4)).astype(np.float64)
    return Detections(
        Boxes(np.repeat(np.array(seen, dtype=np.int64), counts), to_voc(corners)),
        _joined([one["labels"] for one in found], (0,)).astype(np.int64) - 1,
        _joined([one["scores"] for one in found], (0,)).astype(np.float64),
        np.array(seen, dtype=np.int64),
    )


def detection_aps(found: Detections, images: VocImages) -> dict[Rule, np.ndarray]:
    """Return the average precision of every class by both rules.

    Args:
        found: Of `images`, whose unreadable ones do not count.
        images: With the annotated objects.

    Returns:
        By rule (C,), NaN for classes without an object.
    """
    present = [images.objects[i] for i in found.seen]
    numbers = np.repeat(found.seen, [len(one.classes) for one in present])
    nothing = np.zeros(0, dtype=np.int64)
    difficult = np.concatenate([nothing.astype(bool), *(one.difficult for one in present)])
    classes = np.concatenate([nothing, *(one.classes for one in present)])
    corners = np.concatenate([np.zeros((0, 4)), *(one.corners for one in present)])
    aps: dict[Rule, list[float]] = {rule: [] for rule in RULES}
    for label in range(len(images.object_classes)):
        ours, theirs = found.classes == label, classes == label
        detected = Boxes(found.boxes.image[ours], found.boxes.corners[ours])
        objects = Boxes(numbers[theirs], corners[theirs])
        for rule in RULES:
            aps[rule].append(
                detection_ap(detected, found.scores[ours], objects, difficult[theirs], rule=rule)
            )
    return {rule: np.array(values) for rule, values in aps.items()}


def _pixels(batch: BoxedBatch, device: torch.device) -> list[Tensor]:
    return [image.pixels.to(device).float() / 255 for image in batch.images]


def _report_bad(batch: BoxedBatch, inference: InferenceConfig) -> None:
    if batch.bad and inference.on_bad_images is not None:
        inference.on_bad_images(batch.bad)


def _joined(parts: list[Tensor], nothing: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([np.zeros(nothing), *(part.cpu().numpy() for part in parts)])
