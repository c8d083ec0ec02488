"""Names of the weights of a ResNet and its projection head in published TensorFlow checkpoints.

Sources: google-research SimCLR (TF1), which numbers layers in the order of construction, a block's
projection shortcut before its three convolutions; google-research Compressive Visual
Representations (TF2), which names variables by object. Both derived from checkpoints, not code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from distill.models.layout import TensorFlowLayout
from teachers.resnet import num_blocks

_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_BOTTLENECK = ("1", "2", "3")  # of conv1, conv2, conv3 and their bn

# Optimizer slots, averages and heads, not the base network.
_NOT_SIMCLR = (
    r"global_step",
    r".*/Momentum",
    r"ema_model/.*",
    r".*/ExponentialMovingAverage",
    r"(.*/)?head_(supervised|contrastive)/.*",
)
_NEVER_COMPRESSIVE = (
    rf"(global_step|save_counter){re.escape(_SUFFIX)}",
    r"optimizer/.*",
    r".*/\.OPTIMIZER_SLOT/.*",
    r"model/\w*supervised_head/.*",
)
_COMPRESSIVE_PARTS = (
    *("resnet", "target_resnet", "projection_head"),
    *("projector", "target_head", "target_projector"),
)


def simclr_layout(depth: int) -> TensorFlowLayout:
    """Return the layout of a SimCLR v1 file of a ResNet with bottleneck blocks."""
    modules = {}
    for number, (convolution, norm) in enumerate(_layers(depth)):
        index = f"_{number}" if number else ""
        modules[convolution] = f"base_model/conv2d{index}"
        modules[norm] = f"base_model/batch_normalization{index}"
    return TensorFlowLayout(modules, ignored=_NOT_SIMCLR)


def compressive_layout(depth: int, *, part: str = "resnet") -> TensorFlowLayout:
    """Return the layout of a Compressive Visual Representations file.

    `part` is `resnet`, or `target_resnet` for the momentum copy.
    """
    names = _object_names(depth, f"model/_{part}")
    return TensorFlowLayout(names, _SUFFIX, _not_compressive({part}))


def projection_layout(depth: int) -> TensorFlowLayout:
    """Return the layout of a backbone followed by its projection head (`backbone.`, `head.`)."""
    modules = {
        f"backbone.{module}": name for module, name in _object_names(depth, "model/_resnet").items()
    }
    head = "model/_projection_head/linear_layers"
    modules["head.0"] = f"{head}/0/dense"
    modules["head.1"] = f"{head}/0/bn_relu/bn"
    modules["head.3"] = f"{head}/1/dense"
    return TensorFlowLayout(modules, _SUFFIX, _not_compressive({"resnet", "projection_head"}))


def _not_compressive(used: set[str]) -> tuple[str, ...]:
    """Return patterns of all variables that are not in the used parts."""
    unused = (f"model/_{part}/.*" for part in _COMPRESSIVE_PARTS if part not in used)
    return (*_NEVER_COMPRESSIVE, *unused)


def _layers(depth: int) -> Iterator[tuple[str, str]]:
    """Yield the convolutions and their BatchNorms in SimCLR's order of construction."""
    yield "conv1", "bn1"
    for stage, number in enumerate(num_blocks(depth)):
        for block in range(number):
            name = f"layer{stage + 1}.{block}"
            if block == 0:
                yield f"{name}.downsample.0", f"{name}.downsample.1"
            for layer in _BOTTLENECK:
                yield f"{name}.conv{layer}", f"{name}.bn{layer}"


def _object_names(depth: int, root: str) -> dict[str, str]:
    stem = f"{root}/initial_conv_relu_max_pool"
    names = {"conv1": f"{stem}/0/conv2d", "bn1": f"{stem}/2/bn"}
    for stage, number in enumerate(num_blocks(depth)):
        for block in range(number):
            name, path = f"layer{stage + 1}.{block}", f"{root}/block_groups/{stage}/layers/{block}"
            if block == 0:
                names[f"{name}.downsample.0"] = f"{path}/projection_layers/0/conv2d"
                names[f"{name}.downsample.1"] = f"{path}/projection_layers/1/bn"
            for position, layer in enumerate(_BOTTLENECK):
                inner = f"{path}/conv_relu_dropblock_layers"
                names[f"{name}.conv{layer}"] = f"{inner}/{3 * position}/conv2d"
                names[f"{name}.bn{layer}"] = f"{inner}/{3 * position + 1}/bn"
    return names
