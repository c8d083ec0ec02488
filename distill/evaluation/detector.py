"""Builds Faster R-CNN on an embedding network's backbone, from torchvision's parts.

Source: Ren et al., NeurIPS 2015; for ResNets with a feature pyramid over the four stages (Lin et
al., CVPR 2017); for AlexNet and VGG as in Fast R-CNN (Girshick, ICCV 2015): the map before the last
max-pool, and the network's own fc6 and fc7 on the regions; for other convolutional networks the
last map, reduced to 256 channels, and two new layers on the regions. All layers are trained;
BatchNorm keeps its statistics, since a batch of a detector has few images, but its scale and shift
are trained. Limit: networks without a feature map (vision transformers) are refused.

Shapes: B images, C channels, D width of fc7.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.models.networks import EmbeddingNetwork

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
    """Build a detector with the weights of `network`, which is not changed.

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
    # A pyramid's coarsest map is used for proposals only.
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
        f"{network.spec.name} has no feature map for images of any size, which a detector needs; "
        "use a convolutional network such as resnet18, alexnet or mobilenetv2, or --task "
        "classification"
    )
