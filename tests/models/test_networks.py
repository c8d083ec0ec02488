from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import distill
from distill.errors import DistillError
from distill.models.networks import (
    EmbeddingNetwork,
    InputSpec,
    NetworkSpec,
    build_network,
    num_parameters,
    wrap_module,
)
from distill.models.weights import module_key, save_network, weights_hash
from students.registry import build_student
from teachers.load import load_trained


def identity_spec(**options) -> NetworkSpec:
    return NetworkSpec(name="identity", build=lambda size: nn.Identity(), **options)


class Own(nn.Module):
    """A module as a person writes it, with a tied weight."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.first = nn.Linear(width, width, bias=False)
        self.second = nn.Linear(width, width, bias=False)
        self.second.weight = self.first.weight
        self.sharpness = 1.0

    def forward(self, x):
        return self.second(self.first(self.norm(self.conv(x)).mean((2, 3)) * self.sharpness))


def test_normalization_belongs_to_the_network():
    mean, std = (0.5, 0.25, 0.0), (0.5, 0.25, 2.0)
    network = build_network(identity_spec(input=InputSpec(4, mean=mean, std=std)))
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    pixels = images / 255
    expected = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(network(pixels), expected.flatten(1))
    torch.testing.assert_close(network(images), network(pixels))


def test_embedding_dim_is_probed_without_touching_batch_norm():
    backbone = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1))
    network = EmbeddingNetwork(backbone, identity_spec(input=InputSpec(8)))
    assert network.embedding_dim == 5
    assert network.training
    assert int(backbone[1].num_batches_tracked) == 0
    assert num_parameters(network) == 5 * 3 + 5 + 5 + 5


def test_sizes_that_do_not_fit_are_one_sentence():
    with pytest.raises(DistillError, match=r"at least 64 px, 32 px .* --image-size 64"):
        build_network(identity_spec(min_image_size=64), image_size=32)
    spec = NetworkSpec(
        name="stiff", build=lambda size: nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    )
    with pytest.raises(DistillError, match="stiff cannot take images of 7 x 7 pixels"):
        build_network(spec, image_size=7)


def test_a_module_of_ones_own_becomes_a_network():
    module = Own().eval()
    module.norm.train()
    network = wrap_module(module, image_size=9, mean=[0, 0, 0], std=[1, 1, 1], crop_fraction=1.0)
    assert network.spec.name == f"module:{__name__}.Own"
    assert network.embedding_dim == 5
    assert network.backbone is module
    assert network.input == InputSpec(9, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0)
    assert (module.training, module.norm.training) == (False, True)  # modes stay as they were
    network.eval()
    images = torch.rand(2, 3, 9, 9)
    torch.testing.assert_close(network(images), module(images))


class Returns(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Own, "is not a module to wrap; call it"),
        (nn.Conv2d(3, 4, 3), r"a tensor of shape \(2, 4, 6, 6\).*AdaptiveAvgPool2d"),
        (Returns(lambda x: x.mean((1, 2, 3))), r"a tensor of shape \(2,\)"),
        (Returns(lambda x: x[0].flatten()[None]), r"a tensor of shape \(1, 192\)"),
        (Returns(lambda x: (x, x)), "a tuple of 2 for images"),
        (Returns(lambda x: {"pooled": x}), "a dict with the keys pooled"),
        (nn.Linear(3, 4), r"cannot take images of 8 x 8 pixels \(mat1"),
        (Own().to("meta"), "has conv.weight on the meta device"),
        (Own().half(), r"has conv.weight in float16; call module.float\(\)"),
    ],
)
def test_a_module_that_is_no_embedding_network_is_refused(module, message):
    with pytest.raises(DistillError, match=message):
        wrap_module(module, image_size=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size the value 0, it must be at least 1"),
        ({"mean": (0.5,)}, "mean the value"),
        ({"std": (1.0, 0.0, 1.0)}, "std the value .* must be positive"),
        ({"crop_fraction": 1.5}, "crop_fraction the value 1.5, it must be .* at most 1"),
        ({"interpolation": "nearest"}, "interpolation the value 'nearest'; allowed: bilinear"),
    ],
)
def test_an_input_out_of_range_is_refused(options, message):
    with pytest.raises(DistillError, match=message):
        wrap_module(Own(), **options)


def test_a_trained_module_comes_back_into_the_module_that_is_given(tmp_path: Path):
    network = wrap_module(Own(), image_size=9, name="mine", interpolation="bicubic")
    with torch.no_grad():
        network(torch.rand(4, 3, 9, 9))  # moves the statistics of BatchNorm
    save_network(network, tmp_path / "student.safetensors")
    again = distill.load_student(tmp_path, module=Own())
    assert again.input == network.input
    assert again.spec.name == "module:mine"
    assert not again.training
    images = torch.rand(2, 3, 9, 9)
    assert torch.equal(again(images), network.eval()(images))
    with pytest.raises(DistillError, match=r"your own mine, .* distill.load_student\(.*module="):
        load_trained(tmp_path)
    with pytest.raises(DistillError, match=r"does not fit module:mine: .* of another shape"):
        load_trained(tmp_path, module=Own(width=6))
    save_network(build_student("timm:test_resnet", image_size=32), tmp_path / "student.safetensors")
    with pytest.raises(DistillError, match="built by name; leave out module="):
        load_trained(tmp_path, module=Own())


def test_the_key_of_ones_own_module_covers_its_code():
    torch.manual_seed(0)
    network = wrap_module(Own(), image_size=9)
    key = module_key(network)
    assert module_key(network) == key != weights_hash(network)
    assert network.training
    network.backbone.sharpness = 1.01  # no weight, but another output
    assert module_key(network) != key
    network.backbone.sharpness = 1.0
    assert module_key(network) == key
    network.backbone.norm.running_mean += 1
    assert module_key(network) != key
    named = build_student("timm:test_resnet", image_size=32)
    assert module_key(named) == weights_hash(named)


def test_a_module_that_draws_at_random_has_no_key():
    network = wrap_module(Returns(lambda x: x.mean((2, 3)) + torch.rand(3)), image_size=4)
    with pytest.raises(DistillError, match="must be deterministic"):
        module_key(network)
