import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.distortions import Distortion, distort
from distill.data.images import ArrayImages
from distill.data.sources import ImageData, default_pretraining_augmentation
from distill.data.views import PRETRAINING_AUGMENTATIONS, two_views
from distill.errors import DistillError, UnknownNameError

SIZE = 64


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def ramp(low=0):
    """Red grows from left to right, green from top to bottom, both from `low` to 255."""
    values = np.broadcast_to(np.linspace(low, 255, 256), (256, 256))
    return Image.fromarray(np.stack([values, values.T, 0 * values], axis=2).astype(np.uint8))


def drawn(augmentation, count=3000):
    """Return the first and the second views' parameters."""
    draw = two_views(SIZE, augmentation).draw
    parameters = torch.stack([draw() for _ in range(count)])
    return [Distortion(*parameters[:, view].unbind(1)) for view in range(2)]


def share(mask):
    return float(mask.float().mean())


def source_coordinates(view):
    """Fit where the pixels around the center come from: (2, 2) matrix and shift of the center."""
    grid = torch.arange(SIZE) + 0.5 - SIZE / 2
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    inner = slice(SIZE // 2 - 10, SIZE // 2 + 10)
    places = torch.stack([x, y, torch.ones_like(x)], dim=-1)[inner, inner].reshape(-1, 3)
    colors = view[:2, inner, inner].reshape(2, -1).T.double()
    source = (colors - 60) / 195 * SIZE - SIZE / 2  # of ramp(60)
    solution = torch.linalg.lstsq(places.double(), source).solution
    return solution[:2].T, solution[2]


@pytest.mark.parametrize("augmentation", PRETRAINING_AUGMENTATIONS)
@pytest.mark.parametrize("size", [(90, 60), (5, 7), (8, 8), (1, 1)])
def test_views_are_uint8_squares_that_can_be_distorted(augmentation, size):
    image = ramp().resize(size)
    views = pickle.loads(pickle.dumps(two_views(32, augmentation)))
    pair, parameters = [views.view(image), views.second_view(image)], views.draw()
    assert {(view.shape, view.dtype) for view in pair} == {((3, 32, 32), torch.uint8)}
    assert parameters.dtype == torch.float32
    assert distort(torch.stack(pair), parameters).shape == (2, 3, 32, 32)


def test_photo_cuts_8_to_100_percent_and_mirrors_half():
    make = two_views(SIZE, "photo").view
    views = torch.stack([make(ramp()) for _ in range(300)]).float() / 255
    red, green = views[:, 0].mean(1), views[:, 1].mean(2)
    widths, heights = red[:, -1] - red[:, 0], green[:, -1] - green[:, 0]
    assert 120 < (widths < 0).sum() < 180
    assert (heights > 0).all()
    areas, shapes = widths.abs() * heights, widths.abs() / heights
    assert 0.06 < areas.min() < 0.15
    assert 0.85 < areas.max() <= 1
    assert 0.70 < shapes.min() < 0.8
    assert 1.25 < shapes.max() < 1.4
    assert shapes.log().mean().abs() < 0.05


def test_photo_resamples_bicubically():
    stripes = np.full((16, 16, 3), 100, np.uint8)
    stripes[:, ::4] = 150
    view = two_views(SIZE, "photo").view(Image.fromarray(stripes))
    assert view.min() < 100  # bilinear never overshoots


def test_photo_is_distorted_as_published():
    for position, view in enumerate(drawn("photo")):
        jittered = view.hue != 0
        for column, unchanged in ((view.brightness, 0), (view.contrast, 1), (view.saturation, 1)):
            assert torch.equal(column != unchanged, jittered)
        assert 0.77 < share(jittered) < 0.83
        assert 0.38 < view.brightness.abs().max() <= 0.4
        assert 0.38 < (view.contrast - 1).abs().max() <= 0.4001
        assert 0.19 < (view.saturation - 1).abs().max() <= 0.2001
        assert 0.095 < view.hue.abs().max() <= 0.1
        assert 0.17 < share(view.gray) < 0.23
        blurred = view.sigma > 0
        assert share(blurred) == 1 if position == 0 else 0.08 < share(blurred) < 0.12
        sigma = view.sigma[blurred] * (224 / SIZE)  # the same blur for the eye at any side
        assert 0.0999 <= sigma.min() < 0.13
        assert 1.97 < sigma.max() <= 2.0001
        assert share(view.solarize) == 0 if position == 0 else 0.17 < share(view.solarize) < 0.23


def test_the_two_views_are_drawn_apart():
    first, second = drawn("photo")
    assert torch.corrcoef(torch.stack([first.brightness, second.brightness]))[0, 1].abs() < 0.06
    assert 0.02 < share((first.gray > 0) & (second.gray > 0)) < 0.06
    views = two_views(SIZE, "photo")
    assert not torch.equal(views.view(ramp()), views.second_view(ramp()))


def test_glyph_sees_the_whole_turned_scaled_moved_and_sheared():
    make = two_views(SIZE, "glyph").view
    fits = [source_coordinates(make(ramp(60))) for _ in range(300)]
    forward = torch.stack([torch.linalg.inv(matrix) for matrix, _ in fits])
    centers = torch.stack(
        [-matrix @ shift for matrix, (_, shift) in zip(forward, fits, strict=True)]
    )
    scales = torch.linalg.det(forward).sqrt()  # not a number if mirrored
    assert 0.73 < scales.min() < 0.77
    assert 1.17 < scales.max() < 1.22
    assert 0.085 < centers.abs().max() / SIZE < 0.12
    angles = torch.atan2(forward[:, 1, 0], forward[:, 0, 0]).rad2deg()  # rotation less shear of y
    assert 15 < angles.abs().max() < 25.5
    columns = torch.nn.functional.normalize(forward, dim=1)
    skews = (columns[:, :, 0] * columns[:, :, 1]).sum(1).asin().rad2deg()
    assert 12 < skews.abs().max() < 21  # both shears together


def test_glyph_fills_with_black():
    white = Image.new("L", (8, 8), 255).convert("RGB")
    make = two_views(SIZE, "glyph").view
    corners = torch.stack([make(white)[:, 0, 0] for _ in range(50)])
    assert (corners == 0).all(1).sum() > 10


def test_glyph_keeps_hue_and_light():
    for view in drawn("glyph", 1000):
        assert (view.hue == 0).all()
        assert (view.saturation == 1).all()
        assert not view.gray.any()
        assert not view.solarize.any()
        assert 0.75 < share(view.brightness != 0) < 0.85
        assert torch.equal(view.brightness != 0, view.contrast != 1)
        assert 0.4 < share(view.sigma > 0) < 0.6
        assert view.sigma.max() <= 1


def test_default_augmentation_follows_the_data():
    images = ArrayImages(np.zeros((1, 4, 4), np.uint8), name="set")
    mirrored = ImageData("set", images, None, native_size=None, horizontal_flip=True)
    fixed = ImageData("set", images, None, native_size=8, horizontal_flip=False)
    assert default_pretraining_augmentation(mirrored) == "photo"
    assert default_pretraining_augmentation(fixed) == "glyph"


def test_wrong_settings_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'glyph'"):
        two_views(32, "glyphs")
    with pytest.raises(DistillError, match="0 pixels"):
        two_views(0, "photo")
