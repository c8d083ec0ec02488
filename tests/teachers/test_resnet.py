import pytest
import torch

from distill.errors import DistillError
from distill.models.weights import save_network
from teachers.load import load_trained
from teachers.resnet import BACKBONES, ResNet, backbone_name, build_backbone


@pytest.mark.parametrize("depth", [18, 50])
def test_weights_are_interchangeable_with_torchvision(depth):
    from torchvision import models

    theirs = models.get_model(f"resnet{depth}", weights=None)
    theirs.fc = torch.nn.Identity()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    ours = ResNet(depth)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_blocks_start_as_the_identity():
    network = ResNet(18, width=0.125)
    block = network.layer1[0].eval()
    features = torch.rand(1, 8, 4, 4)
    torch.testing.assert_close(block(features), features)
    assert network.layer2[0].downsample[1].weight.all()  # a shortcut's gamma stays


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 2), ("small", 8)])
def test_stems(stem, side):
    network = ResNet(18, width=0.125, stem=stem)
    shapes = []
    network.layer4.register_forward_hook(lambda *args: shapes.append(args[2].shape))
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, network.embedding_dim) == (2, 64)
    assert shapes == [(2, 64, side, side)]


def test_names():
    assert backbone_name("resnet50") == "resnet50"
    assert backbone_name("resnet18", width=0.25, stem="small") == "resnet18x0.25-small"
    assert backbone_name("resnet152", width=2) in BACKBONES
    with pytest.raises(DistillError, match="did you mean 'resnet50'"):
        backbone_name("resnet5")
    with pytest.raises(DistillError, match="--width is 3"):
        backbone_name("resnet50", width=3)


def test_a_backbone_survives_its_file(tmp_path):
    network = build_backbone("resnet18x0.125-small", image_size=32, crop_fraction=1.0).eval()
    save_network(network, tmp_path / "backbone.safetensors")
    again = load_trained(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(images), network(images))
    assert again.input == network.input
