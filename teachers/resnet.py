"""ResNets of any depth and width, for published teachers and for pre-training.

Names and blocks are torchvision's. Source: He et al., CVPR 2016; the width multiplies every stage
and the stem, as in SimCLR (Chen et al., ICML 2020), while torchvision's wide ResNets widen only the
bottlenecks. The last BatchNorm of a residual branch starts at gamma 0 (Goyal et al., 2017), so that
every block starts as the identity. At width 1 and with the ImageNet stem, weights are compatible
with torchvision's.

`BACKBONES` has those that can be pre-trained: `resnet50`, `resnet50x2`, `resnet18x0.25-small`.

Shapes: B batch, C channels, H x W and S x S pixels, D embedding width.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import DistillError, UnknownNameError
from distill.models.libraries import torchvision_models
from distill.models.networks import EmbeddingNetwork, NetworkSpec, build_network
from distill.registry import Registry
from teachers.pretraining import mlp_head

_BLOCKS = {
    18: ("BasicBlock", (2, 2, 2, 2)),
    34: ("BasicBlock", (3, 4, 6, 3)),
    50: ("Bottleneck", (3, 4, 6, 3)),
    101: ("Bottleneck", (3, 4, 23, 3)),
    152: ("Bottleneck", (3, 8, 36, 3)),
}
_BASE_WIDTH = 64
WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 5.0)
ARCHITECTURES = tuple(f"resnet{depth}" for depth in _BLOCKS)
PREFIX = "backbone:"  # distinguishes a backbone from a student of the same name


class ResNet(nn.Module):
    """A ResNet without classifier: normalized images (B, 3, S, S) -> pooled (B, D).

    Args:
        depth: 18, 34, 50, 101 or 152.
        width: Factor of every stage's width, one of `WIDTHS`.
        stem: `imagenet`: 7 x 7 convolution of stride 2 and max-pool of stride 2; `small`: 3 x 3 of
            stride 1 and no pool, for images below 64 px.
        pool: Padding of the stem's max-pool: `symmetric`, PyTorch's, or `same`, TensorFlow's.
    """

    def __init__(
        self, depth: int, *, width: float = 1.0, stem: str = "imagenet", pool: str = "symmetric"
    ) -> None:
        super().__init__()
        block = getattr(torchvision_models().resnet, _BLOCKS[depth][0])
        base = round(_BASE_WIDTH * width)
        is_small = stem == "small"
        size, stride, padding = (3, 1, 1) if is_small else (7, 2, 3)
        self.conv1 = nn.Conv2d(3, base, size, stride=stride, padding=padding, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        max_pool = SamePool() if pool == "same" else nn.MaxPool2d(3, stride=2, padding=1)
        self.maxpool = nn.Identity() if is_small else max_pool
        in_width = base
        for stage, number in enumerate(num_blocks(depth)):
            planes = base * 2**stage
            blocks = _stage(block, in_width, planes, number, stride=1 if stage == 0 else 2)
            self.add_module(f"layer{stage + 1}", blocks)
            in_width = planes * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.embedding_dim = in_width
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Embed normalized images."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in range(1, 5):
            features = self.get_submodule(f"layer{stage}")(features)
        return torch.flatten(self.avgpool(features), 1)


class SamePool(nn.Module):
    """TensorFlow's 3 x 3 max-pool of stride 2 with padding SAME; sides are halved, rounding up.

    An odd side is padded by one at both ends as in PyTorch, an even side only at its end.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Pool feature maps, (B, C, H, W)."""
        height, width = maps.shape[-2:]
        # With ceil_mode the last window of an even side extends beyond it by one.
        padding = (height % 2, width % 2)
        return F.max_pool2d(maps, 3, stride=2, padding=padding, ceil_mode=True)


def num_blocks(depth: int) -> tuple[int, ...]:
    """Return the number of blocks of each of the four stages."""
    return _BLOCKS[depth][1]


def _stage(block: type, in_width: int, planes: int, number: int, *, stride: int) -> nn.Sequential:
    """Build the blocks of a stage, the first with a projection shortcut if the shape changes."""
    out_width = planes * block.expansion  # type: ignore[attr-defined]
    shortcut = None
    if stride != 1 or in_width != out_width:
        convolution = nn.Conv2d(in_width, out_width, 1, stride=stride, bias=False)
        shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out_width))
    blocks = [block(in_width, planes, stride, shortcut)]
    blocks += [block(out_width, planes) for _ in range(number - 1)]
    return nn.Sequential(*blocks)


def _initialize(network: nn.Module) -> None:
    """Initialize convolutions as He et al. (2015) and the last gamma of every branch with zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for last in ("bn3", "bn2"):
            norm = getattr(module, last, None)
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.zeros_(norm.weight)
                break


def build_resnet(
    image_size: int,
    *,
    depth: int,
    width: float,
    stem: str = "imagenet",
    pool: str = "symmetric",
    head_dims: tuple[int, int] | None = None,
) -> nn.Module:
    """Build a `ResNet` with random weights for `NetworkSpec.build`.

    `image_size` is not used; `head_dims` are the hidden and output width of an added projection
    head.
    """
    backbone = ResNet(depth, width=width, stem=stem, pool=pool)
    if head_dims is None:
        return backbone
    head = mlp_head(backbone.embedding_dim, *head_dims)
    return nn.Sequential(OrderedDict(backbone=backbone, head=head))


def backbone_name(arch: str, *, width: float = 1.0, stem: str = "imagenet") -> str:
    """Return the name of a backbone; `DistillError` if there is no such architecture or width."""
    if arch not in ARCHITECTURES:
        raise UnknownNameError("architecture", arch, ARCHITECTURES, "width is given by --width")
    if width not in WIDTHS:
        widths = ", ".join(f"{allowed:g}" for allowed in WIDTHS)
        raise DistillError(f"--width is {width:g}, it must be one of {widths}")
    times = "" if width == 1 else f"x{width:g}"
    return f"{arch}{times}" + ("-small" if stem == "small" else "")


def build_backbone(name: str, *, image_size: int, crop_fraction: float = 0.875) -> EmbeddingNetwork:
    """Build a backbone with random weights (torch's global seed), in train mode, on the CPU.

    Args:
        name: As `backbone_name` returns it.
        image_size: Side of its input in pixels.
        crop_fraction: Side of the evaluation crop as a fraction of the image's side, in (0, 1].

    Raises:
        DistillError: Unknown name or an image side that is too small.
    """
    spec = BACKBONES.get(name)
    spec = replace(spec, input=replace(spec.input, crop_fraction=crop_fraction))
    return build_network(spec, image_size=image_size).train()


BACKBONES: Registry[NetworkSpec] = Registry("backbone")
for _depth, _width, _stem in product(_BLOCKS, WIDTHS, ("imagenet", "small")):
    _name = backbone_name(f"resnet{_depth}", width=_width, stem=_stem)
    _build = partial(build_resnet, depth=_depth, width=_width, stem=_stem)
    BACKBONES.add(_name, NetworkSpec(name=PREFIX + _name, build=_build))
