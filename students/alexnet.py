"""AlexNet as CompRess uses it: torchvision's layout without dropout and without BatchNorm.

The embedding is the 4096-wide fc7 after its ReLU. Source: Krizhevsky, 2014 ("One weird trick"), and
CompRess, NeurIPS 2020. Limit: three max-pools and an 11 x 11 stride-4 stem need at least 63 px.

Images below 95 px leave one pixel for the pooling to 6 x 6 to copy 36 times, and fc6, which holds
two thirds of all weights, multiplies every copy. Its weights are summed over the copies instead:
the same product, 36 times smaller (`tools/bench_few_pixels.py`). An exported (or compiled) network
keeps the copies, so that its product has constant weights, which other programs can quantize.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.layout import PyTorchLayout
from distill.models.libraries import torchvision_models
from distill.models.networks import NetworkSpec
from students.registry import register_student

# What CompRess's own checkpoints call fc6 and fc7.
_PUBLISHED = {"classifier.1.": "feats.0.", "classifier.4.": "feats.2."}
_FC6, _FC7 = 1, 5  # torchvision's classifier: drop, fc6, relu, drop, fc7, relu, fc8


class Pool(nn.AdaptiveAvgPool2d):
    """The pooling to 6 x 6, which leaves a single pixel to `FC6` unless the network is exported."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, C, H, W) to (B, C, 6, 6), or leave (B, C, 1, 1) as it is."""
        if x.shape[2:] == (1, 1) and not torch.compiler.is_compiling():
            return x
        return super().forward(x)


class FC6(nn.Linear):
    """`nn.Linear` that takes what would be copied, (B, C), as well as its copies, (B, C 36)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C) or (B, C 36) to (B, 4096)."""
        if x.shape[1] == self.in_features:
            return super().forward(x)
        weight = self.weight.unflatten(1, (x.shape[1], -1)).sum(2)
        return F.linear(x, weight, self.bias)


def build_alexnet(image_size: int) -> nn.Module:
    """Build AlexNet up to fc7; parameter names are torchvision's."""
    network = torchvision_models().alexnet(weights=None, dropout=0.0)
    network.classifier = network.classifier[: _FC7 + 1]
    network.avgpool.__class__, network.classifier[_FC6].__class__ = Pool, FC6
    return network


register_student(
    NetworkSpec(
        name="alexnet",
        build=build_alexnet,
        min_image_size=64,
        layout=PyTorchLayout(renamed=_PUBLISHED, ignored=("classifier.6.", "fc.")),
        summary="AlexNet, fc7 embedding of 4096",
    )
)
