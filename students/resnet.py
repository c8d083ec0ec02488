"""ResNet-18 and ResNet-50 in torchvision's layout; the embedding is the pooled last stage.

Source: He et al., CVPR 2016; CompRess, NeurIPS 2020 (ResNet-50 is trained through a linear layer
2048 -> 8192 that is dropped for evaluation). Images below 64 px use the small-image stem (3 x 3
convolution of stride 1, no max-pool), since the ImageNet stem would leave a 1 x 1 map.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from distill.models.layout import PyTorchLayout
from distill.models.libraries import torchvision_models
from distill.models.networks import NetworkSpec
from students.registry import register_student

SMALL_IMAGE_BELOW = 64


def build_resnet(image_size: int, *, name: str) -> nn.Module:
    """Build torchvision's `name` without its classifier, with the stem for `image_size`."""
    network = torchvision_models().get_model(name, weights=None)
    network.fc = nn.Identity()
    if image_size < SMALL_IMAGE_BELOW:
        width = network.conv1.out_channels
        network.conv1 = nn.Conv2d(3, width, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network


register_student(
    NetworkSpec(
        name="resnet18",
        build=partial(build_resnet, name="resnet18"),
        layout=PyTorchLayout(ignored=("fc.",)),
        summary="ResNet-18, embedding of 512",
    )
)
register_student(
    NetworkSpec(
        name="resnet50",
        build=partial(build_resnet, name="resnet50"),
        layout=PyTorchLayout(ignored=("fc.",)),
        published_projection_dim=8192,
        summary="ResNet-50, embedding of 2048",
    )
)
