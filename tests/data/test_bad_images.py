"""Images that cannot be read: found beforehand where that is cheap, named, counted, bounded."""

import numpy as np
import pytest

from distill.config import ImageOptions
from distill.data import sources
from distill.data.images import ArrayImages, FolderImages
from distill.data.sources import BadImages, ImageData, scan_is_cheap, training_images
from distill.errors import BadImageError, DistillError

NUM_IMAGES = 150  # more than one thread's task


def zeros(number):
    return ArrayImages(np.zeros((number, 2, 2, 3), np.uint8), name="zeros")


@pytest.fixture
def damaged(tmp_path, write_image, truncate):
    """Of 150 PNGs 7 and 140 are truncated, 141 is empty and 149 missing."""
    for i in range(NUM_IMAGES - 1):
        path = write_image(f"{i}.png", size=(8, 8), seed=i)
        if i in (7, 140):
            truncate(path)
    (tmp_path / "141.png").write_bytes(b"")
    return FolderImages(tmp_path, [f"{i}.png" for i in range(NUM_IMAGES)], name="damaged")


def test_fail_names_the_first_the_number_and_the_remedy(damaged):
    with pytest.raises(BadImageError, match=r"4 of 150 images .* --on-bad-image skip") as caught:
        BadImages("fail").good_indices(damaged)
    assert damaged.describe(7) in str(caught.value)
    with pytest.raises(BadImageError, match=r"a\.png cannot be read .* --on-bad-image skip"):
        BadImages("fail")(["a.png"])


def test_skip_leaves_them_out_and_names_them(damaged, capsys):
    bad_images = BadImages("skip")
    good = bad_images.good_indices(damaged)
    assert good.dtype == np.int64
    np.testing.assert_array_equal(good, np.setdiff1d(np.arange(NUM_IMAGES), [7, 140, 141, 149]))
    assert bad_images.skipped == {damaged.describe(i) for i in (7, 140, 141, 149)}
    printed = capsys.readouterr()
    assert printed.out.count("skipped") == 4
    assert printed.err == ""  # no bar without a terminal


def test_nothing_left_is_an_error(tmp_path):
    images = FolderImages(tmp_path, ["a.png", "b.png"], name="gone")
    with pytest.raises(BadImageError, match="none of the 2 images can be read"):
        BadImages("skip").good_indices(images)


def test_errors_that_are_not_the_images_fault_escape(damaged, monkeypatch):
    def fail(_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(damaged, "load", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        BadImages("skip").good_indices(damaged)


def test_images_are_decoded_where_it_is_cheap_and_of_use(damaged, monkeypatch):
    assert scan_is_cheap(damaged)
    assert not scan_is_cheap(zeros(3))
    monkeypatch.setattr(sources, "_CHEAP_BYTES", 1000)
    assert not scan_is_cheap(damaged)
    monkeypatch.undo()
    monkeypatch.setattr(sources, "_CHEAP_COUNT", 149)
    assert BadImages("fail").good_indices(damaged).tolist() == list(range(NUM_IMAGES))


@pytest.mark.parametrize(("numbers", "most"), [([5], 10), ([1500], 15), ([800, 900], 17)])
def test_a_hundredth_may_be_skipped_and_at_least_ten(numbers, most):
    bad_images = BadImages("skip")
    for number in numbers:
        bad_images.good_indices(zeros(number))
    assert bad_images.most == most
    bad_images([f"{i:03d}" for i in range(most)])
    bad_images(["000", "001"])  # again, as in the next epoch
    with pytest.raises(BadImageError, match=f"{most + 1} images cannot be read, .* last"):
        bad_images(["x"])


def test_what_was_skipped_before_counts_and_is_not_named_again(capsys):
    bad_images = BadImages("skip", most=2)
    bad_images.recall(["a"])
    bad_images(["a", "b"])
    assert capsys.readouterr().out.count("skipped") == 1
    with pytest.raises(BadImageError, match="at most 2 may be skipped"):
        bad_images(["c"])


def test_training_images_are_the_readable_ones_that_are_not_held_out(damaged):
    data = ImageData("damaged", damaged, None)
    options = ImageOptions(holdout=0.1, on_bad_image="skip")
    found = training_images(data, options, seed=0)
    assert len(found.val_index) == 0
    assert len(found.train_index) == 146
    both = np.sort(np.concatenate([found.trained, found.held_out]))
    np.testing.assert_array_equal(both, found.train_index)
    # What is held out does not depend on which images can be read.
    whole = training_images(ImageData("zeros", zeros(NUM_IMAGES), None), options, seed=0)
    assert set(found.held_out) == set(whole.held_out) - {7, 140, 141, 149}
    with pytest.raises(DistillError, match="zeros leaves 1 images to train on, at least 2"):
        training_images(ImageData("zeros", zeros(1), None), ImageOptions(), seed=0)
