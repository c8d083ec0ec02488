import numpy as np
import pytest

from distill.data import sources as scan
from distill.data.images import ArrayImages, FolderImages
from distill.data.sources import check_images, scan_images, scan_is_cheap
from distill.errors import BadImageError, DistillError


@pytest.fixture
def damaged(tmp_path, write_image, truncate):
    """150 PNGs, more than one task's worth; 7 and 140 truncated, 141 empty."""
    for i in range(150):
        path = write_image(f"{i}.png", size=(8, 8), seed=i)
        if i in (7, 140):
            truncate(path)
    (tmp_path / "141.png").write_bytes(b"")
    return FolderImages(tmp_path, [f"{i}.png" for i in range(150)], name="damaged")


@pytest.fixture
def array():
    return ArrayImages(np.zeros((3, 4, 4), np.uint8), name="array")


def test_scan_finds_the_bad_ones(damaged):
    assert scan_images(damaged) == [7, 140, 141]
    assert scan_images(damaged, indices=np.array([141, 3, 7])) == [141, 7]
    assert scan_images(damaged, indices=np.array([], int)) == []


def test_the_bar_stays_off_without_a_terminal(damaged, capsys):
    scan_images(damaged, progress=True)
    assert capsys.readouterr() == ("", "")


def test_fail_names_the_first_the_number_and_the_remedy(damaged):
    with pytest.raises(BadImageError, match=r"3 of 150 images .* --on-bad-image skip") as caught:
        check_images(damaged, on_bad="fail")
    assert damaged.describe(7) in str(caught.value)


def test_skip_returns_the_good_ones(damaged):
    good = check_images(damaged, on_bad="skip")
    assert good.dtype == np.int64
    np.testing.assert_array_equal(good, np.setdiff1d(np.arange(150), [7, 140, 141]))
    chosen = check_images(damaged, on_bad="skip", indices=np.array([9, 7, 2]))
    assert chosen.tolist() == [9, 2]


def test_skip_with_nothing_left_is_an_error(damaged):
    with pytest.raises(BadImageError, match="none of the 2 images can be read"):
        check_images(damaged, on_bad="skip", indices=np.array([7, 141]))


def test_good_images_pass(damaged):
    indices = np.arange(7)
    np.testing.assert_array_equal(check_images(damaged, on_bad="fail", indices=indices), indices)


def test_images_in_memory_are_not_decoded(array, monkeypatch):
    monkeypatch.setattr(array, "load", None)
    assert check_images(array, on_bad="fail").tolist() == [0, 1, 2]
    assert scan_is_cheap(array)


def test_cheapness_depends_on_count_and_bytes(damaged, monkeypatch):
    assert scan_is_cheap(damaged)
    monkeypatch.setattr(scan, "_CHEAP_BYTES", 1000)
    assert not scan_is_cheap(damaged)
    monkeypatch.undo()
    monkeypatch.setattr(scan, "_CHEAP_COUNT", 149)
    assert not scan_is_cheap(damaged)


def test_missing_files_are_bad_not_fatal(tmp_path, write_image):
    write_image("a.png")
    images = FolderImages(tmp_path, ["a.png", "gone.png"], name="set")
    assert scan_is_cheap(images)
    assert check_images(images, on_bad="skip").tolist() == [0]


def test_another_policy_is_refused(array):
    with pytest.raises(DistillError, match="must be 'fail' or 'skip'"):
        check_images(array, on_bad="ignore")


def test_errors_that_are_not_the_images_fault_escape(damaged, monkeypatch):
    def fail(_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(damaged, "load", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        scan_images(damaged)
