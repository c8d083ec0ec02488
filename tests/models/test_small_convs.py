"""Convolutions as matrix products: the same sums, with gradients, and only where they are meant."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distill.models.small_convs import LARGE, FewPixelConv2d, patch_small_convs

torch.manual_seed(0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        *((1, 3, 1, 1), (2, 3, 1, 1), (3, 3, 1, 1), (4, 3, 2, 1), (5, 3, 2, 1), (2, 3, 2, 1)),
        *((1, 7, 2, 3), (6, 5, 2, 1), (3, 3, 1, 0), (5, 1, 2, 0), (1, 3, 3, 2), (2, 2, 1, 1)),
        *(((2, 5), (3, 1), (1, 2), (1, 0)), ((4, 2), (1, 3), (2, 1), (0, 1))),
    ],
)
def test_product_and_convolution_are_the_same_sum(size, kernel, stride, padding, bias):
    conv = nn.Conv2d(4, 6, kernel, stride, padding, bias=bias).double()
    height, width = (size, size) if isinstance(size, int) else size
    x = torch.randn(3, 4, height, width, dtype=torch.float64, requires_grad=True)
    expected = conv(x)
    weights = [x, *conv.parameters()]
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, weights, upstream)
    conv.__class__ = FewPixelConv2d
    found = conv._product(x, *expected.shape[2:])
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found, weights, upstream), gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_products_are_for_gradients_of_few_pixels(monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1))
    patch_small_convs(network)
    called = []
    original = FewPixelConv2d._product
    monkeypatch.setattr(
        FewPixelConv2d, "_product", lambda *given: called.append(1) or original(*given)
    )
    with torch.no_grad():
        network(torch.randn(2, 3, 2, 2))
    network(torch.randn(2, 3, 2, 3))
    assert not called
    network(torch.randn(2, 3, 2, 2))
    assert len(called) == 1
    large = nn.Conv2d(LARGE // 256 // 4, 256, 2, padding=1)
    patch_small_convs(large)
    large(torch.randn(1, large.in_channels, 3, 3))
    assert len(called) == 1
    large(torch.randn(1, large.in_channels, 2, 2))
    assert len(called) == 2


def test_under_autocast_it_is_a_product_in_bf16():
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1))
    x = torch.randn(2, 3, 2, 2)
    expected = network(x)
    patch_small_convs(network)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


def test_plain_convolutions_alone_are_changed_and_their_weights_are_not():
    class Own(nn.Conv2d):
        pass

    network = nn.Sequential(
        *(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=2), Own(4, 4, 3)),
        *(nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, padding="same")),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    )
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    patch_small_convs(network)
    assert [type(module) is FewPixelConv2d for module in network] == [True] + [False] * 6
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_unbatched_image_is_taken_as_pytorch_does():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(3, 2, 2)
    expected = F.conv2d(x, conv.weight, conv.bias, padding=1)
    patch_small_convs(conv)
    torch.testing.assert_close(conv(x), expected)
