"""Fine-tunes a detector on a VOC split and finds boxes with it.

Schedule: SGD with momentum, learning rate 0.02 for 16 images and in proportion for fewer, warmed up
linearly over 100 steps, a tenth after three quarters of the steps and another after eleven
twelfths, as in the VOC transfer of MoCo (He et al., CVPR 2020). Deliberate limits: one process, in
float32; a run that is stopped starts again.

Shapes: C classes, M boxes found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.data.boxed_images import BoxedBatch, evaluation_batches, to_voc, training_batches
from distill.data.voc import VocImages
from distill.errors import NonFiniteLossError
from distill.evaluation.average_precision import RULES, Boxes, Rule, detection_ap
from distill.evaluation.detector import Detector
from distill.terminal import progress_bar

_RATE_PER_IMAGE = 0.02 / 16
_WARMUP_STEPS = 100
_DECAY, _DECAY_AFTER = 0.1, (3 / 4, 11 / 12)
_IMAGES_PER_PASS = 4


@dataclass(frozen=True)
class FineTuning:
    """How a detector is fine-tuned.

    Attributes:
        steps: Steps of the optimizer.
        batch_size: Images a step.
        learning_rate: Peak; None: 0.02 x batch_size / 16.
        weight_decay: Of all parameters.
        seed: Of the order, mirroring and sampling of regions.
    """

    steps: int = 18_000
    batch_size: int = 8
    learning_rate: float | None = None
    weight_decay: float = 1e-4
    seed: int = 0


@dataclass(frozen=True)
class DetectionPass:
    """How images reach a detector.

    Attributes:
        device: Where the detector lies.
        num_workers: Processes that load images.
        on_bad_images: Told of images that cannot be read, as they come; raises to end the pass.
    """

    device: torch.device
    num_workers: int = 0
    on_bad_images: Callable[[Sequence[str]], None] | None = None


def fine_tune(
    detector: Detector,
    images: VocImages,
    index: np.ndarray,
    options: FineTuning,
    how: DetectionPass,
) -> np.ndarray:
    """Train all layers of a detector, in place.

    Args:
        detector: On its device.
        images: A split.
        index: The images to learn from.
        options: Length, rates, seed.
        how: Device and loading.

    Returns:
        The loss of every step, float64; steps without a readable image are left out.

    Raises:
        NonFiniteLossError: A loss that is not finite, with its step.
        DistillError: No image has an object to learn.
    """
    batches = training_batches(
        images,
        index,
        num_batches=options.steps,
        batch_size=options.batch_size,
        seed=options.seed,
        num_workers=how.num_workers,
    )
    rate = options.learning_rate or _RATE_PER_IMAGE * options.batch_size
    optimizer = torch.optim.SGD(
        detector.parameters(), lr=rate, momentum=0.9, weight_decay=options.weight_decay
    )
    factor = learning_rate_factor(options.steps)
    torch.manual_seed(options.seed)  # torchvision samples anchors and regions globally
    detector.train()
    losses: list[float] = []
    with progress_bar(options.steps, description="fine-tune detector", unit="step") as bar:
        for step, batch in enumerate(batches):
            _tell(batch, how)
            for group in optimizer.param_groups:
                group["lr"] = rate * factor(step)
            if batch.images:
                losses.append(_step(detector, optimizer, batch, how.device, step))
                bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            bar.update()
    return np.array(losses)


def learning_rate_factor(steps: int) -> Callable[[int], float]:
    """Return the share of the peak learning rate at a step, counted from 0."""
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
    """What was found in a set of images.

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
    detector: Detector, images: VocImages, index: np.ndarray, how: DetectionPass
) -> Detections:
    """Find the objects in images, in evaluation mode; the detector stays in it."""
    detector.eval()
    batches = evaluation_batches(
        images, index, batch_size=_IMAGES_PER_PASS, num_workers=how.num_workers
    )
    found: list[dict[str, Tensor]] = []
    seen: list[int] = []
    with progress_bar(len(index), description="detect") as bar:
        for batch in batches:
            _tell(batch, how)
            if batch.images:
                found += detector(_pixels(batch, how.device))
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
        images: With the objects that are there.

    Returns:
        By rule (C,), NaN for classes without an object.
    """
    numbers, difficult, classes, corners = _ground_truth(images, found.seen)
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


def _ground_truth(
    images: VocImages, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return image, difficulty, class and corners of all objects of the images at `seen`."""
    objects = [images.objects[i] for i in seen]
    numbers = np.repeat(seen, [len(one.classes) for one in objects])
    nothing = np.zeros(0, dtype=np.int64)
    return (
        numbers,
        np.concatenate([nothing.astype(bool), *(one.difficult for one in objects)]),
        np.concatenate([nothing, *(one.classes for one in objects)]),
        np.concatenate([np.zeros((0, 4)), *(one.corners for one in objects)]),
    )


def _pixels(batch: BoxedBatch, device: torch.device) -> list[Tensor]:
    return [image.pixels.to(device).float() / 255 for image in batch.images]


def _tell(batch: BoxedBatch, how: DetectionPass) -> None:
    if batch.bad and how.on_bad_images is not None:
        how.on_bad_images(batch.bad)


def _joined(parts: list[Tensor], nothing: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([np.zeros(nothing), *(part.cpu().numpy() for part in parts)])
