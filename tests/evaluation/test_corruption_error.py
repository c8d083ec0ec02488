"""Errors under corruption against arithmetic by hand."""

import pytest

from distill.data.corruptions import CORRUPTIONS, SEVERITIES
from distill.errors import DistillError
from distill.evaluation.robustness import (
    ALEXNET_ERRORS,
    corruption_means,
    mean_corruption_error,
    mean_error,
    why_no_mce,
)

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
