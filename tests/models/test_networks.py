import pytest
import torch
from torch import nn

from distill.errors import DistillError
from distill.models.networks import (
    EmbeddingNetwork,
    InputSpec,
    NetworkSpec,
    build_network,
    num_parameters,
)


def identity_spec(**options) -> NetworkSpec:
    return NetworkSpec(name="identity", build=lambda size: nn.Identity(), **options)


def test_normalization_belongs_to_the_network():
    spec = identity_spec(input=InputSpec(4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0)))
    network = build_network(spec)
    images = torch.rand(2, 3, 4, 4)
    expected = (images - torch.tensor([0.5, 0.25, 0.0]).view(3, 1, 1)) / torch.tensor(
        [0.5, 0.25, 2.0]
    ).view(3, 1, 1)
    torch.testing.assert_close(network(images), expected.flatten(1))


def test_uint8_and_float_images_embed_alike():
    network = build_network(identity_spec(input=InputSpec(4)))
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(network(images), network(images / 255))


def test_embedding_dim_is_probed_without_touching_batch_norm():
    backbone = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1))
    network = EmbeddingNetwork(backbone, identity_spec(input=InputSpec(8)))
    assert network.embedding_dim == 5
    assert network.training
    assert int(backbone[1].num_batches_tracked) == 0
    assert num_parameters(network) == 5 * 3 + 5 + 5 + 5


def test_an_image_below_the_floor_is_refused_with_the_remedy():
    with pytest.raises(DistillError, match=r"at least 64 px, 32 px .* --image-size 64"):
        build_network(identity_spec(min_image_size=64), image_size=32)


def test_a_size_that_the_layers_refuse_is_one_sentence():
    spec = NetworkSpec(
        name="stiff", build=lambda size: nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    )
    with pytest.raises(DistillError, match="stiff cannot take images of 7 x 7 pixels"):
        build_network(spec, image_size=7)
