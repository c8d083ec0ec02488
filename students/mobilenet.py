"""MobileNetV2 in torchvision's layout; the embedding is the pooled 1280-wide last convolution.

Source: Sandler et al., CVPR 2018; CompRess, NeurIPS 2020.
"""

from __future__ import annotations

from torch import nn

from distill.models.layout import PyTorchLayout
from distill.models.libraries import torchvision_models
from distill.models.networks import NetworkSpec
from students.registry import register_student


def build_mobilenet_v2(image_size: int) -> nn.Module:
    """Build MobileNetV2 without its dropout and classifier."""
    network = torchvision_models().mobilenet_v2(weights=None)
    network.classifier = nn.Identity()
    return network


register_student(
    NetworkSpec(
        name="mobilenetv2",
        build=build_mobilenet_v2,
        layout=PyTorchLayout(ignored=("classifier.", "fc.")),  # fc: as CompRess published it
        summary="MobileNetV2, embedding of 1280",
    )
)
