"""Errors under corruption against arithmetic by hand; corrupted views by seed and image alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.corruptions import CORRUPTIONS, SEVERITIES
from distill.data.images import ArrayImages
from distill.data.loader import evaluation_loader
from distill.errors import DistillError
from distill.evaluation.corruption import (
    ALEXNET_ERRORS,
    CorruptedView,
    _describe,
    corruption_means,
    mean_corruption_error,
    mean_error,
    why_no_mce,
)
from distill.models.networks import InputSpec

IMAGENET = ("n01440764", *(f"n0{2000000 + i}" for i in range(998)), "n15075141")


def everywhere(error: float) -> dict[str, dict[int, float]]:
    return {name: dict.fromkeys(SEVERITIES, error) for name in CORRUPTIONS}


def test_corruptions_count_alike_however_many_severities_they_have():
    errors = {"fog": {1: 0.1, 2: 0.3}, "snow": {5: 0.6}}
    assert corruption_means(errors) == {"fog": pytest.approx(0.2), "snow": 0.6}
    assert mean_error(errors) == pytest.approx(0.4)  # not (0.1 + 0.3 + 0.6) / 3
    with pytest.raises(DistillError, match="no corruption was measured"):
        mean_error({})


def test_alexnet_scores_one_and_the_order_is_the_standard_one():
    own = {name: dict.fromkeys(SEVERITIES, error) for name, error in ALEXNET_ERRORS.items()}
    assert mean_corruption_error(own) == pytest.approx(1)
    assert ALEXNET_ERRORS["gaussian_noise"] == 0.886428
    assert ALEXNET_ERRORS["glass_blur"] == 0.826268
    assert ALEXNET_ERRORS["brightness"] == 0.564592
    assert ALEXNET_ERRORS["jpeg_compression"] == 0.6065


def test_mce_by_hand():
    # Nothing wrong but under fog: errors 0.2, 0.3, 0.4, 0.5, 0.6 sum to 2, AlexNet's to
    # 5 x 0.819324 = 4.09662; the other fourteen corruptions add 0.
    errors = {
        **everywhere(0.0),
        "fog": dict(zip(SEVERITIES, (0.2, 0.3, 0.4, 0.5, 0.6), strict=True)),
    }
    assert mean_corruption_error(errors) == pytest.approx(2 / 4.09662 / 15)


def test_everything_wrong():
    # The mean of the reciprocals of AlexNet's errors, summed by awk from the published list.
    assert mean_corruption_error(everywhere(1.0)) == pytest.approx(1.29345, abs=1e-5)


def test_mce_needs_everything():
    errors = everywhere(0.5)
    del errors["snow"][3]
    with pytest.raises(DistillError, match="snow at severity 3 is missing"):
        mean_corruption_error(errors)


def test_mce_is_defined_on_imagenet_at_224_px_only():
    complete = everywhere(0.5)
    assert why_no_mce(complete, IMAGENET, 224) is None
    assert "1,000 classes only" in why_no_mce(complete, None, 224)
    assert "1,000 classes only" in why_no_mce(complete, IMAGENET[:999], 224)
    assert "224 px only, not 128 px" in why_no_mce(complete, IMAGENET, 128)
    assert "five severities" in why_no_mce({"fog": {1: 0.5}}, IMAGENET, 224)
    del complete["fog"][2]
    assert "five severities" in why_no_mce(complete, IMAGENET, 224)


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


def test_labels_are_part_of_the_key():
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    index = np.arange(4)
    plain = _describe(ArrayImages(pixels, [0, 1, 0, 1], name="a"), index)
    assert plain == _describe(ArrayImages(pixels, [0, 1, 0, 1], name="a"), index)
    others = [
        _describe(ArrayImages(pixels, [0, 1, 1, 1], name="a"), index),
        _describe(ArrayImages(pixels, [0, 1, 0, 1], name="a"), index[:3]),
        _describe(ArrayImages(pixels + 1, [0, 1, 0, 1], name="a"), index),
    ]
    assert plain not in others
