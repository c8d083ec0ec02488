"""Corrupted views: by seed, corruption, severity and image alone; crop first, then corrupt."""

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.corruptions import CORRUPTIONS, SEVERITIES
from distill.data.images import ArrayImages
from distill.data.loader import evaluation_loader
from distill.evaluation.robustness import CorruptedView
from distill.models.networks import InputSpec

INPUT = InputSpec(image_size=32, crop_fraction=0.5)


@pytest.fixture
def images() -> ArrayImages:
    pixels = np.random.default_rng(0).integers(0, 255, size=(6, 40, 40, 3))
    pixels[3] = pixels[1]  # the same picture twice
    return ArrayImages(pixels.astype(np.uint8), name="noise")


def views(images: ArrayImages, view: CorruptedView, order: list[int], **how: int) -> torch.Tensor:
    settings = {"batch_size": 2, "num_workers": 0, **how}
    loader = evaluation_loader(
        images, view.build(), indices=np.array(order), draw=view.draw, **settings
    )
    return torch.cat([batch.view for batch in loader])


def test_order_batches_and_workers_do_not_matter(images):
    view = CorruptedView(INPUT, "gaussian_noise", 2, seed=3)
    plain = views(images, view, [0, 1, 2, 3])
    assert (plain.shape, plain.dtype) == ((4, 3, 32, 32), torch.uint8)
    assert torch.equal(views(images, view, [3, 2, 1, 0], batch_size=3).flip(0), plain)
    assert torch.equal(views(images, view, [0, 1, 2, 3], num_workers=2), plain)
    assert not torch.equal(plain[1], plain[3])  # one picture at two places


def test_the_seed_matters(images):
    found = [
        views(images, CorruptedView(INPUT, "shot_noise", 1, seed=seed), [0]) for seed in (0, 1)
    ]
    assert not torch.equal(*found)


def test_every_corruption_and_severity_has_a_stream_of_its_own():
    draws = [CorruptedView(INPUT, name, s, seed=7).draw for name in CORRUPTIONS for s in SEVERITIES]
    assert draws == [(7, number) for number in range(75)]


def test_the_crop_comes_first():
    # A white frame around a gray center, which is all that the crop sees: its mean is its gray, and
    # less contrast changes nothing. Were the frame still there, the mean would be far brighter.
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[8:56, 8:56] = 40
    view = CorruptedView(INPUT, "contrast", 5, seed=0).build()
    found = view(Image.fromarray(pixels))
    assert found.unique().tolist() in ([39], [40], [39, 40])
