"""Views of frozen networks: the pass in evaluation, and numbered random crops."""

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.views import evaluation_view, training_view
from distill.embeddings.embed import NetworkView
from distill.models.networks import InputSpec


@pytest.fixture
def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3)).astype(np.uint8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_the_center_is_the_networks_evaluation_view(noise, interpolation, fraction):
    view = NetworkView(InputSpec(12, crop_fraction=fraction, interpolation=interpolation))
    expected = evaluation_view(12, crop_fraction=fraction, interpolation=interpolation)
    assert torch.equal(view.build()(noise), expected(noise))
    assert (view.name, view.draw, view.crop_fraction) == ("center", None, fraction)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("augmentation", ["crop", "crop-flip"])
def test_random_crops_at_the_networks_size(noise, interpolation, augmentation):
    view = NetworkView(InputSpec(12, interpolation=interpolation), 3, augmentation, seed=5)
    torch.manual_seed(0)
    found = view.build()(noise)
    torch.manual_seed(0)
    expected = training_view(12, augmentation, interpolation=interpolation)(noise)
    assert torch.equal(found, expected)
    assert (view.name, view.draw, view.crop_fraction) == ("random 3", (5, 3), None)
