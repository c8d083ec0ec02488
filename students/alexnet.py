"""AlexNet as in CompRess: torchvision's layout without dropout and without BatchNorm.

The embedding is the 4096-wide fc7 after its ReLU. Source: Krizhevsky, 2014 ("One weird trick"), and
CompRess, NeurIPS 2020. Limit: three max-pools and an 11 x 11 stride-4 stem need at least 63 px.

For images below 95 px the pooling to 6 x 6 copies a single pixel 36 times, and fc6, which has two
thirds of all weights, multiplies every copy. Here its weights are summed over the copies instead:
the same result with a product 36 times smaller (`tools/bench_few_pixels.py`). An exported or
compiled network keeps the copies, so that its weights are constants, which can be quantized.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.layout import PyTorchLayout
from distill.models.libraries import torchvision_models
from distill.models.networks import NetworkSpec
from students.registry import register_student

# fc6 and fc7 in CompRess's checkpoints.
_PUBLISHED = {"classifier.1.": "feats.0.", "classifier.4.": "feats.2."}
_FC6, _FC7 = 1, 5  # torchvision's classifier: drop, fc6, relu, drop, fc7, relu, fc8


class Pool(nn.AdaptiveAvgPool2d):
    """The pooling to 6 x 6, except of a single pixel in an eager network."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, C, H, W) to (B, C, 6, 6), or return (B, C, 1, 1) unchanged."""
        if x.shape[2:] == (1, 1) and not torch.compiler.is_compiling():
            return x
        return super().forward(x)


class FC6(nn.Linear):
    """`nn.Linear` of 36 pixels, (B, C 36), or of the single pixel to copy, (B, C)."""

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
