import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.images import ArrayImages
from distill.data.sources import ImageData, default_augmentation
from distill.data.views import AUGMENTATIONS, evaluation_view, small_view, training_view
from distill.errors import DistillError, UnknownNameError


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def ramp(width, height):
    """Red grows from left to right, green from top to bottom, both from 0 to 255."""
    red = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=2).astype(np.uint8))


def is_mirrored(view):
    return view[0, :, 0].float().mean() > view[0, :, -1].float().mean()


def area_seen(view):
    """Part of the ramp's area between the view's first and last pixels."""
    red, green = view[0].float(), view[1].float()
    width = (red[:, -1] - red[:, 0]).abs().mean() / 255
    return float(width * (green[-1] - green[0]).mean() / 255)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (7, 5), (1, 1)])
def test_views_are_uint8_squares(augmentation, size):
    view = pickle.loads(pickle.dumps(training_view(32, augmentation)))(ramp(*size))
    assert view.shape == (3, 32, 32)
    assert view.dtype == torch.uint8


def test_published_crop_mirrors_half_and_sees_8_to_100_percent():
    make = training_view(64, "crop-flip")
    views = [make(ramp(256, 256)) for _ in range(300)]
    mirrored = sum(map(is_mirrored, views))
    areas = np.array([area_seen(view) for view in views])
    assert 120 < mirrored < 180
    assert 0.06 < areas.min() < 0.15
    assert 0.85 < areas.max() <= 1
    assert 0.45 < areas.mean() < 0.58  # uniform in [0.08, 1], long strips that do not fit redrawn


def test_mild_crop_never_mirrors_and_sees_most():
    make = training_view(64, "crop")
    views = [make(ramp(256, 256)) for _ in range(300)]
    areas = np.array([area_seen(view) for view in views])
    assert not any(map(is_mirrored, views))
    assert 0.56 < areas.min() < 0.7
    assert len(set(areas.round(3))) > 100


@pytest.mark.parametrize("augmentation", ["crop-flip", "crop"])
def test_a_crop_shows_the_least_area_given(augmentation):
    make = training_view(64, augmentation, min_crop_area=0.4)
    areas = np.array([area_seen(make(ramp(256, 256))) for _ in range(300)])
    assert 0.36 < areas.min() < 0.45
    assert 0.85 < areas.max() <= 1


@pytest.mark.parametrize("area", [0.0, -0.1, 1.1, float("nan")])
def test_areas_out_of_range_are_refused(area):
    with pytest.raises(DistillError, match="must be in"):
        training_view(64, min_crop_area=area)


def test_no_augmentation_is_the_evaluation_view():
    image = ramp(90, 60)
    assert torch.equal(training_view(32, "none")(image), evaluation_view(32)(image))
    whole = evaluation_view(32, crop_fraction=1.0)(image)
    assert torch.equal(training_view(32, "none", crop_fraction=1.0)(image), whole)


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300)])
def test_evaluation_view_resizes_the_shorter_side_then_crops_the_center(width, height):
    image = ramp(width, height)
    shorter = 256
    size = (shorter * width // min(width, height), shorter * height // min(width, height))
    resized = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    expected = np.asarray(resized)[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(evaluation_view(224)(image).permute(1, 2, 0).numpy(), expected)


def test_whole_view_of_a_square_at_its_own_size_changes_nothing():
    image = ramp(8, 8)
    view = evaluation_view(8, crop_fraction=1.0)(image)
    np.testing.assert_array_equal(view.permute(1, 2, 0).numpy(), np.asarray(image))


def test_bicubic_differs_and_shrinking_is_antialiased():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    bilinear = evaluation_view(16)(noise)
    assert not torch.equal(bilinear, evaluation_view(16, interpolation="bicubic")(noise))
    assert bilinear.float().std() < 15  # without averaging it would stay near 74 / 1.5


def test_default_augmentation_follows_the_data():
    images = ArrayImages(np.zeros((1, 4, 4), np.uint8), name="set")
    mirrored = ImageData("set", images, None, native_size=None, horizontal_flip=True)
    fixed = ImageData("set", images, None, native_size=8, horizontal_flip=False)
    assert default_augmentation(mirrored) == "crop-flip"
    assert default_augmentation(fixed) == "crop"


def test_wrong_settings_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'crop-flip'"):
        training_view(32, "cropflip")
    with pytest.raises(UnknownNameError, match="did you mean 'bicubic'"):
        evaluation_view(32, interpolation="cubic")
    for fraction in (0.0, 1.1):
        with pytest.raises(DistillError, match=r"must be in \(0, 1\]"):
            evaluation_view(32, crop_fraction=fraction)
    for make in (training_view, evaluation_view):
        with pytest.raises(DistillError, match="0 pixels"):
            make(0)


@pytest.mark.parametrize("augmentation", ["crop-flip", "crop", "none"])
def test_training_views_are_resized_as_asked(augmentation):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    views = {}
    for interpolation in ("bilinear", "bicubic"):
        torch.manual_seed(0)
        view = training_view(16, augmentation, interpolation=interpolation)
        views[interpolation] = view(Image.fromarray(noise))
    assert not torch.equal(views["bilinear"], views["bicubic"])
    torch.manual_seed(0)
    assert torch.equal(training_view(16, augmentation)(Image.fromarray(noise)), views["bilinear"])
    with pytest.raises(UnknownNameError, match="interpolation 'nearest'"):
        training_view(16, augmentation, interpolation="nearest")


def test_a_small_view_shows_a_small_part_of_the_image():
    # Brightness is the column: the range of a crop says how wide it is.
    pixels = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    torch.manual_seed(0)
    views = [small_view(24)(image) for _ in range(60)]
    assert {(view.shape, view.dtype) for view in views} == {((3, 24, 24), torch.uint8)}
    widths = [int(view.max()) - int(view.min()) for view in views]
    largest = 200 * (0.14 * 4 / 3) ** 0.5
    assert max(widths) <= largest
    assert min(widths) >= 200 * (0.05 * 3 / 4) ** 0.5 * 0.8
    rising = [int(view[0, 0, -1]) > int(view[0, 0, 0]) for view in views]
    assert 10 < sum(rising) < 50
