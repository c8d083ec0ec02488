import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from distill.models.weights import weights_hash


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)]
    built = nn.Sequential(*layers)
    built.register_buffer("empty", torch.empty(0, 3))
    built.register_buffer("flags", torch.tensor([True, False]))
    built.register_buffer("brief", torch.ones(2, dtype=torch.bfloat16))
    return built


def test_memory_order_does_not_matter():
    plain, other = network(), network().to(memory_format=torch.channels_last)
    assert not other[0].weight.is_contiguous()
    assert weights_hash(plain) == weights_hash(other)
    assert len(weights_hash(plain)) == 64


@pytest.mark.gpu
def test_the_device_does_not_matter():
    assert weights_hash(network()) == weights_hash(network().cuda())


@pytest.mark.parametrize(
    "change",
    [
        lambda built: built[2].weight.data[1].mul_(1 + 1e-7),
        lambda built: built[1].running_mean.add_(1),
        lambda built: built.register_buffer("flags", torch.tensor([True, True])),
        lambda built: built.register_buffer("more", torch.empty(0)),
        lambda built: built.register_buffer("empty", torch.empty(3, 0)),
        lambda built: built.register_buffer("brief", torch.ones(2, dtype=torch.float16)),
        lambda built: built[2].weight.data.copy_(built[2].weight.data.flip(0)),
    ],
)
def test_names_dtypes_shapes_and_values_matter(change):
    changed = copy.deepcopy(network())
    with torch.no_grad():
        change(changed)
    assert weights_hash(changed) != weights_hash(network())


def test_values_of_another_layer_matter():
    first, second = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential()
    second.append(first[1]).append(first[0])
    assert weights_hash(first) != weights_hash(second)


def test_what_is_not_saved_does_not_matter():
    changed = network()
    changed.register_buffer("mean", torch.ones(3), persistent=False)
    assert weights_hash(changed) == weights_hash(network())


def test_values_under_another_name_matter():
    layer = nn.Linear(2, 2)
    named = [nn.Sequential(OrderedDict([(name, layer)])) for name in ("a", "b")]
    assert weights_hash(named[0]) != weights_hash(named[1])
