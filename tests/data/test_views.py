"""Views: which part of an image they show, how they are drawn, what is refused."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.distortions import Distortion, distort
from distill.data.views import (
    AUGMENTATIONS,
    PRETRAINING_AUGMENTATIONS,
    evaluation_view,
    training_view,
    two_views,
)
from distill.errors import DistillError

SIZE = 64


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def ramp(width=256, height=256, low=0):
    """Red grows from left to right, green from top to bottom, both from `low` to 255."""
    red = np.broadcast_to(np.linspace(low, 255, width), (height, width))
    green = np.broadcast_to(np.linspace(low, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=2).astype(np.uint8))


def crops(make, number=300):
    """Return the widths, negative where mirrored, and heights that views show of the ramp."""
    image = ramp()
    views = torch.stack([make(image) for _ in range(number)]).float() / 255
    red, green = views[:, 0].mean(1), views[:, 1].mean(2)
    return red[:, -1] - red[:, 0], green[:, -1] - green[:, 0]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("size", [(90, 60), (7, 5), (1, 1)])
def test_views_are_uint8_squares(augmentation, size):
    view = pickle.loads(pickle.dumps(training_view(32, augmentation)))(ramp(*size))
    assert (view.shape, view.dtype) == ((3, 32, 32), torch.uint8)


@pytest.mark.parametrize("make", [training_view(SIZE), two_views(SIZE, "photo").view])
def test_published_crops_mirror_half_and_show_8_to_100_percent(make):
    widths, heights = crops(make)
    assert 120 < (widths < 0).sum() < 180
    assert (heights > 0).all()
    areas, shapes = widths.abs() * heights, widths.abs() / heights
    assert 0.06 < areas.min() < 0.15
    assert 0.85 < areas.max() <= 1
    assert 0.45 < areas.mean() < 0.58  # uniform in [0.08, 1], long strips that do not fit redrawn
    assert 0.70 < shapes.min() < 0.8
    assert 1.25 < shapes.max() < 1.4
    assert shapes.log().mean().abs() < 0.05


@pytest.mark.parametrize(
    ("augmentation", "min_crop_area", "least", "mirrors"),
    [("crop", None, 0.6, False), ("crop", 0.4, 0.4, False), ("crop-flip", 0.4, 0.4, True)],
)
def test_a_crop_shows_the_least_area_given(augmentation, min_crop_area, least, mirrors):
    widths, heights = crops(training_view(SIZE, augmentation, min_crop_area=min_crop_area))
    areas = widths.abs() * heights
    assert least * 0.9 < areas.min() < least + 0.1
    assert 0.85 < areas.max() <= 1
    assert (widths < 0).any() == mirrors


def test_no_augmentation_is_the_evaluation_view():
    image = ramp(90, 60)
    for fraction in (0.875, 1.0):
        view = training_view(32, "none", crop_fraction=fraction)
        assert torch.equal(view(image), evaluation_view(32, crop_fraction=fraction)(image))


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300)])
def test_evaluation_view_resizes_the_shorter_side_then_crops_the_center(width, height):
    image = ramp(width, height)
    size = (256 * width // min(width, height), 256 * height // min(width, height))
    resized = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    expected = np.asarray(resized)[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(evaluation_view(224)(image).permute(1, 2, 0).numpy(), expected)


def test_whole_view_of_a_square_at_its_own_size_changes_nothing():
    view = evaluation_view(8, crop_fraction=1.0)(ramp(8, 8))
    np.testing.assert_array_equal(view.permute(1, 2, 0).numpy(), np.asarray(ramp(8, 8)))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_views_are_resampled_as_asked_and_antialiased(augmentation):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    views = {}
    for interpolation in ("bilinear", "bicubic"):
        torch.manual_seed(0)
        views[interpolation] = training_view(16, augmentation, interpolation=interpolation)(noise)
    assert not torch.equal(views["bilinear"], views["bicubic"])
    assert views["bilinear"].float().std() < 35  # without averaging near 74 / 1.5
    torch.manual_seed(0)
    assert torch.equal(training_view(16, augmentation)(noise), views["bilinear"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: training_view(32, "cropflip"), "did you mean 'crop-flip'"),
        (lambda: training_view(32, interpolation="nearest"), "interpolation 'nearest'"),
        (lambda: evaluation_view(32, interpolation="cubic"), "did you mean 'bicubic'"),
        (lambda: two_views(32, "glyphs"), "did you mean 'glyph'"),
        (lambda: training_view(0), "0 pixels"),
        (lambda: evaluation_view(0), "0 pixels"),
        (lambda: two_views(0, "photo"), "0 pixels"),
        (lambda: training_view(64, min_crop_area=0.0), "must be in"),
        (lambda: training_view(64, min_crop_area=float("nan")), "must be in"),
        (lambda: evaluation_view(32, crop_fraction=0.0), "must be in"),
        (lambda: evaluation_view(32, crop_fraction=1.1), "must be in"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(DistillError, match=message):
        make()


def drawn(augmentation, count=2000):
    """Return the parameters of the first and the second view's distortions."""
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
    source = (colors - 60) / 195 * SIZE - SIZE / 2  # of a ramp from 60 on
    solution = torch.linalg.lstsq(places.double(), source).solution
    return solution[:2].T, solution[2]


@pytest.mark.parametrize("augmentation", PRETRAINING_AUGMENTATIONS)
@pytest.mark.parametrize("size", [(90, 60), (8, 8), (1, 1)])
def test_two_views_are_uint8_squares_that_can_be_distorted(augmentation, size):
    views = pickle.loads(pickle.dumps(two_views(32, augmentation)))
    pair, parameters = [make(ramp(*size)) for make in (views.view, views.second_view)], views.draw()
    assert {(view.shape, view.dtype) for view in pair} == {((3, 32, 32), torch.uint8)}
    assert parameters.dtype == torch.float32
    assert distort(torch.stack(pair), parameters).shape == (2, 3, 32, 32)


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
        assert 1.95 < sigma.max() <= 2.0001
        assert share(view.solarize) == 0 if position == 0 else 0.17 < share(view.solarize) < 0.23


def test_the_two_views_are_drawn_apart():
    first, second = drawn("photo")
    assert torch.corrcoef(torch.stack([first.brightness, second.brightness]))[0, 1].abs() < 0.06
    assert 0.02 < share((first.gray > 0) & (second.gray > 0)) < 0.06
    views = two_views(SIZE, "photo")
    assert not torch.equal(views.view(ramp()), views.second_view(ramp()))


def test_glyph_shows_the_whole_turned_scaled_moved_and_sheared():
    make, image = two_views(SIZE, "glyph").view, ramp(low=60)
    fits = [source_coordinates(make(image)) for _ in range(300)]
    forward = torch.stack([torch.linalg.inv(matrix) for matrix, _ in fits])
    shifts = [-matrix @ shift for matrix, (_, shift) in zip(forward, fits, strict=True)]
    scales = torch.linalg.det(forward).sqrt()  # not a number if mirrored
    assert 0.73 < scales.min() < 0.77
    assert 1.17 < scales.max() < 1.22
    assert 0.085 < torch.stack(shifts).abs().max() / SIZE < 0.12
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
