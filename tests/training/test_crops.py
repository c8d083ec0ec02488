import numpy as np
import pytest
from PIL import Image
from torch import nn

from distill.config import TrainConfig, updated
from distill.errors import DistillError
from distill.models.networks import NetworkSpec, build_network
from distill.training.setup import require_crops, student_views
from students.registry import build_student


def config(**options) -> TrainConfig:
    options = {"image_size": 64, "augmentation": "crop-flip", **options}
    return updated(TrainConfig(), options, source="the test")


def test_crops_come_before_small_crops():
    found = student_views(
        config(student_crops=2, small_crops=3, small_crop_size=24), crop_fraction=0.875
    )
    assert found.sizes == [64, 64, 24, 24, 24]
    assert len(found.views) == 5
    assert student_views(config(), crop_fraction=0.875).sizes == [64]


def test_crops_show_the_area_asked_for():
    view = student_views(config(min_crop_area=1.0), crop_fraction=0.875).views[0]
    corner = np.zeros((64, 64, 3), np.uint8)
    corner[0] = corner[-1] = 255  # only a crop of the whole image has both edges
    seen = [view(Image.fromarray(corner)) for _ in range(5)]
    assert all(int(one[:, edge].min()) == 255 for one in seen for edge in (0, -1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_crop_area": 0.5, "augmentation": "none"}, "--min-crop-area 0.5 goes with crops"),
        ({"student_crops": 2, "augmentation": "none"}, "makes all --student-crops 2 of an image"),
        (
            {"small_crops": 1, "small_crop_size": 64, "augmentation": "crop"},
            "--small-crops 1 goes with --augmentation crop-flip, not with crop",
        ),
        ({"small_crops": 1, "small_crop_size": 65}, "65 is above --image-size 64"),
        ({"small_crops": 1, "small_crop_size": 32}, "alexnet cannot take small crops of 32 x 32"),
    ],
)
def test_crops_that_make_no_sense_are_refused(options, message):
    with pytest.raises(DistillError, match=message):
        require_crops(config(**options), build_student("alexnet", image_size=64))


def test_a_student_is_asked_whether_it_takes_the_size():
    small = config(small_crops=2, small_crop_size=32)
    require_crops(small, build_student("resnet18", image_size=64))
    flat = NetworkSpec(
        name="flat", build=lambda size: nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, 4))
    )
    with pytest.raises(DistillError, match="flat cannot take small crops of 32 x 32"):
        require_crops(small, build_network(flat, image_size=64))
    growing = NetworkSpec(name="growing", build=lambda size: nn.Flatten())
    with pytest.raises(DistillError, match="growing cannot take small crops"):
        require_crops(small, build_network(growing, image_size=64))
    # AlexNet pools to 6 x 6 whatever comes.
    require_crops(
        config(image_size=96, small_crops=1, small_crop_size=64),
        build_student("alexnet", image_size=96),
    )
