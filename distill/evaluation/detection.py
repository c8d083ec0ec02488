"""Loads the images of a VOC split with their boxes, for a detector.

VOC counts pixels from 1 and the last one belongs to the box; a detector measures from the image's
left and upper edge, in lengths: (xmin - 1, ymin - 1, xmax, ymax). Images keep their size; a
detector scales them itself. For training half of the images are mirrored; which ones depends on
(seed, draw) alone. As usual on VOC, difficult objects are not learned, nor are images without any
other.

Shapes: N images, G objects, H x W pixels.

Builds Faster R-CNN on an embedding network's backbone, from torchvision's parts.

Source: Ren et al., NeurIPS 2015; for ResNets with a feature pyramid over the four stages (Lin et
al., CVPR 2017); for AlexNet and VGG as in Fast R-CNN (Girshick, ICCV 2015): the map before the last
max-pool, and the network's own fc6 and fc7 on the regions; for other convolutional networks the
last map, narrowed to 256 channels, and two new layers on the regions. All layers learn; BatchNorm
keeps the statistics it came with, since a batch of a detector has few images, but learns its scale
and shift. Deliberate limit: networks without a feature map (vision transformers) are refused.

Shapes: B images, C channels, D width of fc7.

Fine-tunes a detector on a VOC split and finds boxes with it.

Schedule: SGD with momentum, learning rate 0.02 for 16 images and in proportion for fewer, warmed up
linearly over 100 steps, a tenth after three quarters of the steps and another after eleven
twelfths, as in the VOC transfer of MoCo (He et al., CVPR 2020). Deliberate limits: one process, in
float32; a run that is stopped starts again.

Shapes: C classes, M boxes found.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from distill.data.voc import Objects, VocImages
from distill.data.workers import worker_settings
from distill.errors import BadImageError, DistillError, NonFiniteLossError
from distill.evaluation.average_precision import RULES, Boxes, Rule, detection_ap
from distill.models.networks import EmbeddingNetwork
from distill.terminal import progress_bar

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


def _learned_boxes(objects: Objects) -> np.ndarray:
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


LONGEST_PER_SHORTEST = 1000 / 600  # sides of Faster R-CNN on VOC
_STAGES = ("layer1", "layer2", "layer3", "layer4")
_WIDTH = 256
_PROBE_SIDE = 128
_RATIOS = (0.5, 1.0, 2.0)


class Detector(nn.Module):
    """Faster R-CNN whose BatchNorm layers never leave evaluation mode.

    Called with float images in [0, 1] of any sizes, as torchvision's models are: in training mode
    with targets it returns losses, else boxes, labels from 1 and scores.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return what torchvision's model returns."""
        return self.model(images, targets)

    def train(self, mode: bool = True) -> Detector:
        """Set the mode of all but BatchNorm."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


@dataclass(frozen=True)
class _Parts:
    """What differs between backbones.

    Attributes:
        backbone: Normalized images -> a map or, for a pyramid, maps by name; has `out_channels`.
        anchor_sizes: Of every map.
        bins: Of a region, per side.
        head: Regions -> (R, `head_width`); None for two new layers.
        head_width: D.
    """

    backbone: nn.Module
    anchor_sizes: tuple[tuple[int, ...], ...]
    bins: int = 7
    head: nn.Module | None = None
    head_width: int = 1024


def build_detector(
    network: EmbeddingNetwork, num_classes: int, *, image_size: int, regions_per_image: int = 512
) -> Detector:
    """Build a detector that starts from the weights of `network`, which stays as it is.

    Args:
        network: Its backbone is copied; new layers are drawn from torch's global seed.
        num_classes: Without the background.
        image_size: Shorter side in pixels that images are scaled to, as long as the longer one
            does not exceed 5/3 of it.
        regions_per_image: That the head is trained on at a step.

    Returns:
        The detector, in training mode, on the network's device.

    Raises:
        DistillError: The backbone gives no feature map.
    """
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    parts = _parts(network, image_size)
    num_maps = len(parts.anchor_sizes)
    # A pyramid's coarsest map proposes regions and is not read.
    read = [str(level) for level in range(max(1, num_maps - 1))]
    model = FasterRCNN(
        parts.backbone,
        min_size=image_size,
        max_size=round(image_size * LONGEST_PER_SHORTEST),
        image_mean=list(network.input.mean),
        image_std=list(network.input.std),
        rpn_anchor_generator=AnchorGenerator(parts.anchor_sizes, (_RATIOS,) * num_maps),
        box_roi_pool=MultiScaleRoIAlign(read, output_size=parts.bins, sampling_ratio=2),
        box_head=parts.head,
        box_predictor=FastRCNNPredictor(parts.head_width, num_classes + 1),
        box_batch_size_per_image=regions_per_image,
    )
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return Detector(model.to(network.mean.device)).train()


def _parts(network: EmbeddingNetwork, image_size: int) -> _Parts:
    backbone = copy.deepcopy(network.backbone).cpu().eval()
    if all(hasattr(backbone, stage) for stage in _STAGES):
        return _pyramid(backbone)
    sizes = (tuple(max(1, round(image_size * size / 600)) for size in (32, 64, 128, 256, 512)),)
    features = getattr(backbone, "features", None)
    if isinstance(features, nn.Sequential) and isinstance(features[-1], nn.MaxPool2d):
        own = _with_own_layers(backbone, features, sizes)
        if own is not None:
            return own
    if not isinstance(features, nn.Module):
        features = _ForwardFeatures(backbone) if hasattr(backbone, "forward_features") else None
    if features is None:
        raise _no_map(network)
    probed = _probed(features)
    width = getattr(backbone, "num_features", probed.shape[1] if probed is not None else 0)
    # Some give tokens, or a map whose channels come last.
    is_map = probed is not None and probed.ndim == 4 and probed.shape[2] == probed.shape[3]
    if probed is None or not is_map or probed.shape[1] != width:
        raise _no_map(network)
    narrowed = nn.Sequential(features, nn.Conv2d(width, _WIDTH, 1))
    return _Parts(_with_width(narrowed, _WIDTH), sizes)


def _pyramid(backbone: nn.Module) -> _Parts:
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    names = {stage: str(level) for level, stage in enumerate(_STAGES)}
    with torch.no_grad():
        side = torch.zeros(1, 3, _PROBE_SIDE, _PROBE_SIDE)
        maps = IntermediateLayerGetter(backbone, names)(side).values()
    strides = [_PROBE_SIDE // one.shape[-1] for one in maps]
    # 32 px at stride 4, twice that a level up, and one level more than there are stages.
    sizes = tuple((8 * stride,) for stride in (*strides, 2 * strides[-1]))
    widths = [one.shape[1] for one in maps]
    return _Parts(BackboneWithFPN(backbone, names, widths, _WIDTH), sizes)


def _with_own_layers(
    backbone: nn.Module, features: nn.Sequential, sizes: tuple[tuple[int, ...], ...]
) -> _Parts | None:
    """Return the parts of an AlexNet or VGG; None when its classifier does not read a map."""
    classifier = getattr(backbone, "classifier", None)
    pool = getattr(backbone, "avgpool", None)
    if not isinstance(classifier, nn.Module) or not isinstance(pool, nn.AdaptiveAvgPool2d):
        return None
    before_pool = features[:-1]
    probed = _probed(before_pool)
    linear = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
    bins = pool.output_size[0] if isinstance(pool.output_size, tuple) else pool.output_size
    if not linear or probed is None or bins is None:
        return None
    width = probed.shape[1]
    if linear[0].in_features != width * bins**2:
        return None
    head = nn.Sequential(nn.Flatten(), classifier)
    return _Parts(_with_width(before_pool, width), sizes, bins, head, linear[-1].out_features)


class _ForwardFeatures(nn.Module):
    """The feature map of a timm model."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone.forward_features(images)  # type: ignore[operator]


def _probed(features: nn.Module) -> Tensor | None:
    """Return the map of an empty image, None when the network cannot take one of another size."""
    try:
        with torch.no_grad():
            return features(torch.zeros(1, 3, _PROBE_SIDE, _PROBE_SIDE))
    except (RuntimeError, AssertionError, ValueError):
        return None


def _with_width(module: nn.Module, width: int) -> nn.Module:
    module.out_channels = width  # type: ignore[assignment]  # where torchvision looks for it
    return module


def _no_map(network: EmbeddingNetwork) -> DistillError:
    return DistillError(
        f"{network.spec.name} gives no feature map of images of any size, which a detector needs; "
        "use a convolutional network such as resnet18, alexnet or mobilenetv2, or --task "
        "classification"
    )


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
