from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.training.initialization import has_normalization, scale_layers
from students.registry import build_student


@pytest.fixture
def images() -> torch.Tensor:
    """Return images that have much in common, as photographs have."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1, 3, 16, 16, generator=generator)
    return 2 * common + 0.5 * torch.randn(64, 3, 16, 16, generator=generator)


def make_network(*, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=bias),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, groups=2, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 6 * 6, 20, bias=bias),
    )


def outputs(network: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Return what each convolution and linear layer says, as channels x values."""
    found, kept = images, []
    for layer in network:
        found = layer(found)
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            kept.append(found.detach().transpose(0, 1).flatten(1))
    return kept


def test_every_channel_of_every_layer_has_mean_0_and_variance_1(images):
    network = make_network()
    assert scale_layers(network, images) == 3
    for rows in outputs(network, images):
        torch.testing.assert_close(rows.mean(1), torch.zeros(len(rows)), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            rows.std(1, correction=0), torch.ones(len(rows)), atol=1e-5, rtol=0
        )


def test_layers_keep_the_direction_of_their_weights(images):
    network, before = make_network(), make_network()
    scale_layers(network, images)
    for new, old in ((network[0].weight, before[0].weight), (network[5].weight, before[5].weight)):
        cosine = nn.functional.cosine_similarity(new.flatten(1), old.flatten(1))
        torch.testing.assert_close(cosine, torch.ones(len(new)))


def test_without_a_bias_variances_alone_are_scaled(images):
    network = make_network(bias=False)
    scale_layers(network, images)
    for rows in outputs(network, images):
        torch.testing.assert_close(
            rows.std(1, correction=0), torch.ones(len(rows)), atol=1e-5, rtol=0
        )


def test_what_never_differs_is_only_shifted():
    network = nn.Sequential(nn.Linear(4, 3))
    weight = network[0].weight.detach().clone()
    scale_layers(network, torch.ones(8, 4))
    assert torch.equal(network[0].weight, weight)
    torch.testing.assert_close(network(torch.ones(8, 4)), torch.zeros(8, 3))


def test_a_layer_used_twice_is_scaled_once_and_modes_and_hooks_are_as_before(images):
    layer = nn.Linear(16, 16)
    network = nn.Sequential(layer, layer, nn.Dropout(0.9)).train()
    assert scale_layers(network, images) == 1
    assert network.training
    assert network[2].training
    assert not layer._forward_pre_hooks
    assert not any(parameter.grad_fn for parameter in network.parameters())


def test_alexnets_embeddings_no_longer_point_in_one_direction():
    torch.manual_seed(0)
    network = build_student("alexnet", image_size=64)
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8) // 2
    images = (images + torch.randint(0, 60, (32, 3, 8, 8), dtype=torch.uint8)).repeat_interleave(
        8, 2
    )
    images = images.repeat_interleave(8, 3)

    def spread() -> float:
        with torch.no_grad():
            unit = nn.functional.normalize(network.eval()(images), dim=1)
        return float((unit - unit.mean(0)).square().sum(1).mean().sqrt())

    assert spread() < 0.15
    assert scale_layers(network, images) == 7
    assert spread() > 0.6


def test_normalization_is_recognized():
    assert has_normalization(build_student("resnet18", image_size=32))
    assert not has_normalization(build_student("alexnet", image_size=64))
