"""Accuracy on other images and on frames: counts by hand, a teacher that sees hues."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.errors import DistillError
from distill.evaluation.base import describe_metric
from distill.evaluation.shifts import frame_accuracy

#            anchor 0: all right | 1: wrong two frames on | 2: itself wrong | 3: alone
ANCHOR = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 3])
OFFSET = np.array([-1, 0, 1, -1, 0, 1, 2, 0, 1, 0])
RIGHT = np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 1], dtype=bool)


@pytest.mark.parametrize(("k", "pm_k"), [(0, 3 / 4), (1, 3 / 4), (2, 2 / 4), (10, 2 / 4)])
def test_all_neighbors_within_k_frames_must_be_right(k, pm_k):
    assert frame_accuracy(RIGHT, ANCHOR, OFFSET, k=k) == (3 / 4, pm_k)


def test_neighbors_before_count_like_those_after_and_order_does_not():
    order = np.random.default_rng(0).permutation(len(RIGHT))
    for k, pm_k in ((1, 3 / 4), (2, 2 / 4)):
        mirrored = frame_accuracy(RIGHT[order], ANCHOR[order], -OFFSET[order], k=k)
        assert mirrored == (3 / 4, pm_k)


def test_an_anchor_that_cannot_be_read_does_not_count():
    keep = np.arange(len(RIGHT)) != 1  # anchor 0 itself
    assert frame_accuracy(RIGHT[keep], ANCHOR[keep], OFFSET[keep], k=1) == (2 / 3, 2 / 3)
    with pytest.raises(DistillError, match="no anchor can be read"):
        frame_accuracy(RIGHT[:1], ANCHOR[:1], OFFSET[:1], k=1)


RED, GREEN, BLUE = (200, 30, 30), (30, 200, 30), (30, 30, 200)  # of class0, class1, class2
GREENISH_BLUE = (30, 120, 200)  # class2, but class1 when that is not among the choices


@pytest.fixture
def shifts(measure):
    """Return a function that measures a student of random weights, and pixels as its teacher."""
    teacher = ("--teacher", "pixels", "--teacher-image-size", "32")
    return lambda *flags: measure("robustness", *teacher, *flags)


@pytest.fixture
def complaint(command, capsys):
    """Return a function that returns the sentence of a request that cannot be met."""

    def complain(*flags: str) -> str:
        teacher = ("--teacher", "pixels", "--teacher-image-size", "32")
        assert command("robustness", *teacher, *flags) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    return complain


def paint(file: Path, color: tuple[int, int, int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((24, 24, 3), color, np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def other(tmp_path) -> Path:
    folder = tmp_path / "Other-Set"
    for number, color in enumerate((RED, RED, RED, GREEN)):
        paint(folder / "class0" / f"{number}.png", color)
    for number in range(2):
        paint(folder / "class1" / f"{number}.png", GREENISH_BLUE)
    return folder


@pytest.mark.parametrize("head", ["nn", "linear"])
def test_plain_and_restricted_accuracy(shifts, other, tmp_path, capsys, head):
    found = shifts("--corruptions", "none", "--shifted", str(other), "--head", head)
    out = capsys.readouterr().out
    name = "robustness_other_set_accuracy"
    own = [name, f"{name}_restricted", f"{name}_clean", f"{name}_clean_restricted"]
    assert list(found) == [*own, *(f"teacher_{one}" for one in own)]
    assert found[f"teacher_{name}"] == 3 / 6
    assert found[f"teacher_{name}_restricted"] == 5 / 6
    assert found[f"teacher_{name}_clean"] == found[f"teacher_{name}_clean_restricted"] == 1
    header, first, second = out.splitlines()[-3:]
    assert header.split("  ")[0] == "accuracy"
    assert header.count("among its classes") == 2
    assert first.split()[0] == "Other-Set"
    assert first.split()[-2:] == ["0.5000", "0.8333"]
    assert second.startswith("Other-Set: clean, its classes")
    assert not (tmp_path / "measured" / "robustness.json").exists()


def test_a_class_map_says_what_names_mean(shifts, complaint, other, tmp_path, capsys):
    (other / "class0").rename(other / "chair")
    (other / "class1").rename(other / "spoon")
    paint(other / "unknown" / "0.png", RED)
    assert "'chair' and 2 more" in complaint("--corruptions", "none", "--shifted", str(other))
    class_map = tmp_path / "map.csv"
    # A chair may be class0 or class1, of which the four are; a spoon is class2.
    class_map.write_text("name,class\nchair,class0\nchair,class1\nspoon,class2\n")
    flags = ["--shifted", str(other), "--class-map", str(class_map), "--corruptions", "none"]
    assert shifts(*flags)["teacher_robustness_other_set_accuracy"] == 1
    assert "1 class folders match no training class" in capsys.readouterr().out


def test_frames_with_their_neighbors(shifts, complaint, tmp_path, capsys):
    for name, color in {"a": RED, "b": RED, "c": GREEN, "d": BLUE, "e": GREENISH_BLUE}.items():
        paint(tmp_path / "vid" / f"{name}.png", color)
    # Anchor b: right, c two frames on is not. Anchor d: right, with its neighbor. Anchor c: of
    # two labels one is right, alone.
    # Anchor e as class1: wrong, unless class2 is no choice, which it is.
    rows = ["b.png,a.png,class0,-1", "b.png,b.png,class0,0", "b.png,c.png,class0,2"]
    rows += ["d.png,d.png,class2,0", "d.png,e.png,class2,1", "c.png,c.png,class0;class1,0"]
    rows += ["e.png,e.png,class1,0"]
    frames = tmp_path / "vid" / "my frames.csv"
    frames.write_text("\n".join(["anchor,frame,label,offset", *rows]))
    flags = ["--corruptions", "none", "--frames", str(frames)]
    shifts(*flags, "--frames-k", "1")
    found = shifts(*flags)
    assert found["teacher_robustness_my_frames_anchor"] == 3 / 4
    assert found["teacher_robustness_my_frames_pm1"] == 3 / 4
    assert found["teacher_robustness_my_frames_pm10"] == 2 / 4
    assert found["teacher_robustness_my_frames_pm10_restricted"] == 2 / 4
    assert "my frames, 4 anchors: pm-10" in capsys.readouterr().out
    assert "--frames-k is -1, it must be at least 0" in complaint(*flags, "--frames-k", "-1")
    # Unreadable frames are left out, and so are anchors that are unreadable.
    (tmp_path / "vid" / "c.png").unlink()
    assert "c.png cannot be read as an image" in complaint(*flags)
    found = shifts(*flags, "--on-bad-image", "skip")
    assert found["teacher_robustness_my_frames_anchor"] == 2 / 3
    assert found["teacher_robustness_my_frames_pm10"] == 2 / 3


def test_frames_are_restricted_to_the_labels_there_are(shifts, tmp_path):
    paint(tmp_path / "vid" / "a.png", RED)
    paint(tmp_path / "vid" / "b.png", GREENISH_BLUE)
    frames = tmp_path / "vid" / "f.csv"
    frames.write_text("anchor,frame,label\na.png,a.png,zero\na.png,b.png,one\na.png,b.png,none\n")
    class_map = tmp_path / "map.json"
    class_map.write_text('{"zero": "class0", "one": "class1"}')
    flags = ["--corruptions", "none", "--frames", str(frames), "--class-map", str(class_map)]
    found = shifts(*flags)
    assert found["teacher_robustness_f_anchor"] == 1
    assert found["teacher_robustness_f_pm10"] == 0  # b is taken for class2
    assert found["teacher_robustness_f_pm10_restricted"] == 1


def test_corruptions_and_shifts_together(shifts, other):
    flags = ("--corruptions", "contrast", "--severities", "1", "--shifted", str(other))
    found = shifts(*flags)
    assert {"robustness_mean_error", "teacher_robustness_other_set_accuracy"} <= set(found)
    assert all(describe_metric(name) is not None for name in found)


def test_numbers_of_other_images_have_a_meaning():
    for name, words in (
        ("robustness_other_set_accuracy", "accuracy on the images of other_set"),
        ("robustness_a_accuracy_clean_restricted", "accuracy on the validation images of the cla"),
        ("teacher_robustness_vid_anchor", "the teacher: share of the anchor frames of vid that ar"),
        ("robustness_vid_pm10_restricted", "share of the anchor frames of vid that are right wit"),
    ):
        assert describe_metric(name).words.startswith(words)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--corruptions", "none"], "leaves nothing to measure"),
        (["--class-map", "m.csv"], "--class-map goes with --shifted or --frames"),
        (["--shifted", "gone"], "no such folder: gone"),
        (["--frames", "gone.csv"], "cannot read the frames gone.csv"),
    ],
)
def test_mistakes_are_one_sentence(complaint, tmp_path, flags, message):
    assert message in complaint(*flags)
    assert not (tmp_path / "measured").exists()


def test_two_folders_of_one_name(complaint, other, tmp_path):
    more = tmp_path / "more" / "other set"
    paint(more / "class0" / "0.png", RED)
    assert "two folders of --shifted have the same name" in complaint(
        "--shifted", str(other), str(more)
    )
