"""Inner layers of networks, against the maps that the networks' own parts give."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distill.errors import DistillError, UnknownNameError
from distill.evaluation.layers import (
    LayerBackbone,
    chosen_layers,
    layer_network,
    pooled,
    standard_layers,
)
from distill.models.networks import EmbeddingNetwork, NetworkSpec
from students.registry import build_student
from teachers.resnet import build_backbone


@pytest.fixture(scope="module")
def alexnet():
    torch.manual_seed(0)
    return build_student("alexnet", image_size=64).eval()


def test_alexnet_by_its_layers(alexnet):
    names = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]
    assert list(standard_layers(alexnet.backbone)) == names
    images = torch.rand(2, 3, 64, 64)
    whole, x = alexnet.backbone, images
    expected = {}
    conv = 0
    for layer in whole.features:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            conv += 1
            expected[f"conv{conv}"] = x.clone()
    found = LayerBackbone(whole, chosen_layers(whole, ["all"]))
    rows = found(images)
    for name, maps in expected.items():
        side = min(int((9000 / maps.shape[1]) ** 0.5), maps.shape[2])
        torch.testing.assert_close(
            rows[:, found.columns()[name]], F.adaptive_avg_pool2d(maps, side).flatten(1)
        )
    fc7 = whole(images)
    torch.testing.assert_close(rows[:, found.columns()["fc7"]], fc7)
    assert list(found.widths) == names
    assert rows.shape[1] == sum(found.widths.values())
    assert found.widths["fc6"] == 4096


def test_resnets_by_their_stages():
    paths = {f"stage{i}": f"layer{i}" for i in range(1, 5)}
    for network in (
        build_student("resnet18", image_size=32),
        build_backbone("resnet18x0.125-small", image_size=16),
        build_student("timm:test_resnet", image_size=32),
    ):
        assert standard_layers(network.backbone) == paths
    torch.manual_seed(0)
    network = build_student("resnet18", image_size=32).eval()
    layers = layer_network(network, ["stage4", "layer1"])
    assert layers.backbone.widths == {"stage4": 512 * 16, "layer1": 64 * 11**2}
    images = torch.rand(2, 3, 32, 32)
    rows = layers(images)
    maps = rows[:, : 512 * 16].view(2, 512, 16)
    torch.testing.assert_close(maps.mean(2), network(images))


def test_another_network_is_opened_once():
    layers = standard_layers(build_student("mobilenetv2", image_size=32).backbone)
    assert list(layers) == [f"features.{i}" for i in range(19)]


def test_a_relu_in_place_does_not_reach_back():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(inplace=True))
    images = torch.randn(8, 3, 2, 2)
    rows = LayerBackbone(network, {"fc": "1"})(images)
    torch.testing.assert_close(rows, network[1](network[0](images)))
    assert (rows < 0).any()


@pytest.mark.parametrize(
    ("shape", "width"),
    [
        ((2, 64, 55, 55), 64 * 11 * 11),
        ((2, 256, 13, 13), 256 * 5 * 5),
        ((2, 64, 4, 3), 64 * 12),
        ((2, 9001, 3, 3), 9001),
        ((2, 7, 10), 10),
        ((2, 10), 10),
    ],
)
def test_widths_after_pooling(shape: tuple, width: int):
    assert pooled(torch.zeros(shape)).shape == (2, width)


def test_pooling_averages():
    maps = torch.rand(1, 2250, 4, 4)  # to 2 x 2
    expected = maps.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    torch.testing.assert_close(pooled(maps), expected.flatten(1))
    tokens = torch.rand(2, 5, 3)
    torch.testing.assert_close(pooled(tokens), tokens.mean(1))


def test_layers_that_are_not_there(alexnet):
    with pytest.raises(UnknownNameError, match="unknown layer 'conv9': did you mean 'conv"):
        chosen_layers(alexnet.backbone, ["conv9"])
    with pytest.raises(UnknownNameError, match=r"did you mean 'features\.11'"):
        chosen_layers(alexnet.backbone, ["fetures.11"])


def test_layers_that_cannot_be_taken():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.pair = nn.Flatten(), nn.Linear(1, 1), Pair()

        def forward(self, x):
            self.pair(x)
            return self.used(x)

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(DistillError, match="layer unused does not run when Odd embeds"):
        LayerBackbone(Odd(), {"unused": "unused"})(torch.zeros(1, 3, 2, 2))
    with pytest.raises(DistillError, match="layer pair gives neither maps"):
        LayerBackbone(Odd(), {"pair": "pair"})(torch.zeros(1, 3, 2, 2))
    layers = LayerBackbone(Odd(), {"used": "used"})
    layers(torch.zeros(1, 3, 2, 2))
    layers.backbone.used, images = nn.Identity(), torch.zeros(1, 3, 2, 2)
    with pytest.raises(DistillError, match="layer used does not run"):  # not the pass before
        layers(images)
    network = EmbeddingNetwork(Odd(), NetworkSpec(name="odd", build=lambda side: Odd()))
    with pytest.raises(DistillError, match=r"^layer unused does not run"):
        layer_network(network, ["unused"])
