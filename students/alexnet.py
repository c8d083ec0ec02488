"""AlexNet as CompRess uses it: torchvision's layout without dropout and without BatchNorm.

The embedding is the 4096-wide fc7 after its ReLU. Source: Krizhevsky, 2014 ("One weird trick"), and
CompRess, NeurIPS 2020. Limit: three max-pools and an 11 x 11 stride-4 stem need at least 63 px.
"""

from __future__ import annotations

from torch import nn

from distill.layout import PyTorchLayout
from distill.networks import NetworkSpec

# What CompRess's own checkpoints call fc6 and fc7.
_PUBLISHED = {"classifier.1.": "feats.0.", "classifier.4.": "feats.2."}
_FC7 = 5  # torchvision's classifier: drop, fc6, relu, drop, fc7, relu, fc8


def build_alexnet(image_size: int) -> nn.Module:
    """Build AlexNet up to fc7; parameter names are torchvision's."""
    from torchvision import models

    network = models.alexnet(weights=None, dropout=0.0)
    network.classifier = network.classifier[: _FC7 + 1]
    return network


SPECS = (
    NetworkSpec(
        name="alexnet",
        build=build_alexnet,
        min_image_size=64,
        layout=PyTorchLayout(renamed=_PUBLISHED, ignored=("classifier.6.", "fc.")),
        summary="AlexNet, fc7 embedding of 4096",
    ),
)
