"""Scales a network's random layers by what they say of some images, so that it starts alive.

A network without normalization layers passes on what all images have in common: the embeddings of
an untrained AlexNet point in nearly one direction, and the first large steps push them all along it
(docs/options-beyond.md). Here every convolution and every linear layer, in the order in which they
run, gets per-channel outputs of mean 0 and variance 1 over a batch of images: the within-layer
normalization of Krahenbuhl et al. (Data-dependent Initializations of Convolutional Neural Networks,
ICLR 2016, section 3.1), with mean and variance of the channel itself. It is what BatchNorm does at
the first step, once and into the weights.

Deliberate limits: random weights stay random (no k-means or PCA filters); layers that are reached
more than once are scaled for their first use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_LEAST_STD = 1e-6  # a channel that says the same of every image is only shifted


def has_normalization(network: nn.Module) -> bool:
    """Say whether a network has layers that normalize, of whatever kind."""
    return any("Norm" in type(module).__name__ for module in network.modules())


@torch.no_grad()
def scale_layers(network: nn.Module, images: Tensor) -> int:
    """Scale and shift every layer to per-channel mean 0 and variance 1 over a batch.

    Args:
        network: On the device of `images`; its convolutions and linear layers are changed in place.
        images: What the network takes, (B, ...), B at least 2.

    Returns:
        How many layers were scaled.
    """
    seen: set[nn.Module] = set()

    def before(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if layer not in seen:
            seen.add(layer)
            _scale(layer, layer.forward(*inputs))

    layers = [module for module in network.modules() if isinstance(module, _LAYERS)]
    hooks = [layer.register_forward_pre_hook(before) for layer in layers]
    was_training = network.training
    try:
        network.eval()(images)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return len(seen)


def _scale(layer: Any, output: Tensor) -> None:
    channel = -1 if isinstance(layer, nn.Linear) else 1
    rows = output.float().movedim(channel, 0).flatten(1)  # channels x values
    std, mean = torch.std_mean(rows, dim=1, correction=0)
    std = torch.where(std < _LEAST_STD, 1.0, std)
    layer.weight.div_(std.view(-1, *[1] * (layer.weight.ndim - 1)))
    if layer.bias is not None:
        layer.bias.sub_(mean).div_(std)
