"""Features of a network's inner layers, to evaluate each of them ("best layer").

Maps are averaged in space to the largest s x s with C s^2 <= `MAX_DIM`, about 9,000 as in Zhang et
al. (Colorful Image Colorization, ECCV 2016) and later work, and flattened; tokens (B, T, C) are
averaged over T; vectors are unchanged. One pass gives all layers: `layer_network` concatenates
their vectors. Limits: maps are (B, C, H, W); of a module that runs several times in a pass the last
output is used.

Shapes: B images, C channels, H x W map, s side after pooling, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import DistillError, UnknownNameError
from distill.models.networks import EmbeddingNetwork

MAX_DIM = 9000
ALL = "all"

# torchvision's layout; outputs after the ReLU, before any pooling.
_ALEXNET = {
    "conv1": "features.1",
    "conv2": "features.4",
    "conv3": "features.7",
    "conv4": "features.9",
    "conv5": "features.11",
    "fc6": "classifier.2",
    "fc7": "classifier.5",
}
_RESNET = {f"stage{number}": f"layer{number}" for number in range(1, 5)}


def standard_layers(backbone: nn.Module) -> dict[str, str]:
    """Return the layers that are evaluated by default: module paths by name, in order.

    AlexNet's conv1 to conv5, fc6 and fc7; a ResNet's stage1 to stage4; of another network the
    top-level modules, with `nn.Sequential` expanded once.
    """
    paths = dict(backbone.named_modules())
    if type(backbone).__name__ == "AlexNet":
        return {name: path for name, path in _ALEXNET.items() if path in paths}
    if all(path in paths for path in _RESNET.values()):
        return dict(_RESNET)
    found = []
    for name, child in backbone.named_children():
        parts = child.named_children() if isinstance(child, nn.Sequential) else ()
        found += [f"{name}.{part}" for part, _ in parts] or [name]
    return {path: path for path in found if not isinstance(paths[path], nn.Identity | nn.Dropout)}


def chosen_layers(backbone: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Return module paths by name.

    Args:
        backbone: Whose layers they are.
        names: Of standard layers, module paths as in `backbone.named_modules()`, or "all" for all
            standard ones.

    Raises:
        UnknownNameError: A name that is neither.
    """
    standard = standard_layers(backbone)
    paths = [path for path, _ in backbone.named_modules() if path]
    chosen: dict[str, str] = {}
    for name in names:
        if name == ALL:
            chosen.update(standard)
        elif name in standard or name in paths:
            chosen[name] = standard.get(name, name)
        else:
            raise UnknownNameError(
                "layer", name, [ALL, *standard], "the path of any module works too", unlisted=paths
            )
    return chosen


class LayerBackbone(nn.Module):
    """A backbone whose output is the pooled features of some of its layers, concatenated.

    Args:
        backbone: Takes images (B, 3, S, S).
        layers: Module paths by name.

    Attributes:
        widths: Of each layer's vector by name, in the order of the columns; filled by the first
            pass.
    """

    def __init__(self, backbone: nn.Module, layers: dict[str, str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = layers
        self.widths: dict[str, int] = {}
        self._outputs: dict[str, Tensor] = {}
        for name, path in layers.items():
            backbone.get_submodule(path).register_forward_hook(self._receive(name))

    def forward(self, images: Tensor) -> Tensor:
        """Return the layers' vectors, float32 (B, sum of widths).

        Raises:
            DistillError: A layer that does not run, or gives no map, tokens or vector.
        """
        self._outputs.clear()
        self.backbone(images)
        for name in self.layers:
            if name not in self._outputs:
                raise DistillError(
                    f"layer {name} does not run when {type(self.backbone).__name__} embeds an "
                    "image; name another with --layers"
                )
        vectors = [self._outputs[name] for name in self.layers]
        self.widths = {
            name: vector.shape[1] for name, vector in zip(self.layers, vectors, strict=True)
        }
        return torch.cat(vectors, dim=1)

    def columns(self) -> dict[str, slice]:
        """Return the columns of the output by layer."""
        columns, start = {}, 0
        for name, width in self.widths.items():
            columns[name] = slice(start, start + width)
            start += width
        return columns

    def _receive(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def receive(module: nn.Module, inputs: object, output: object) -> None:
            if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4):
                raise DistillError(
                    f"layer {name} gives neither maps, tokens nor vectors; name another with "
                    "--layers"
                )
            self._outputs[name] = pooled(output)

        return receive


def layer_network(network: EmbeddingNetwork, names: Sequence[str]) -> EmbeddingNetwork:
    """Return a network whose embedding is the features of some layers of `network`, concatenated.

    Its `backbone` is a `LayerBackbone`, whose `columns` belong to the layers.

    Args:
        network: On the CPU; hooks stay on its modules.
        names: See `chosen_layers`.

    Raises:
        UnknownNameError: An unknown layer.
        DistillError: A layer that cannot be used, see `LayerBackbone`.
    """
    network.eval()
    layers = LayerBackbone(network.backbone, chosen_layers(network.backbone, names)).eval()
    side = network.input.image_size
    with torch.no_grad():
        layers(torch.zeros(1, 3, side, side))  # refuses unusable layers before the data is read
    return EmbeddingNetwork(layers, network.spec).eval()


def pooled(output: Tensor) -> Tensor:
    """Return one vector per image, float32 (B, at most about `MAX_DIM`), in memory of its own.

    Args:
        output: Maps (B, C, H, W), tokens (B, T, C) or vectors (B, C).
    """
    if output.ndim == 2:
        return output.float().clone()  # the next layer may be a ReLU in place
    if output.ndim == 3:
        return output.float().mean(dim=1)
    side = max(1, math.isqrt(MAX_DIM // output.shape[1]))
    size = min(side, output.shape[2]), min(side, output.shape[3])
    return F.adaptive_avg_pool2d(output.float(), size).flatten(1)
