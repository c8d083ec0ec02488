"""`distill robustness` on other images: numbers of a teacher that sees hues, counted by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import distill
from distill.cli.main import run
from students.registry import build_student

STUDENT = "timm:test_resnet"
RED, GREEN, BLUE = (200, 30, 30), (30, 200, 30), (30, 30, 200)  # of class0, class1, class2
GREENISH_BLUE = (30, 120, 200)  # class2, but class1 when that is not among the choices


@pytest.fixture
def measure(make_folder, tmp_path):
    """Return a function that measures the student of random weights and the pixels."""
    torch.manual_seed(0)
    weights = tmp_path / "w.pth"
    torch.save(build_student(STUDENT, image_size=32).backbone.state_dict(), weights)
    data = str(make_folder())

    def command(*flags: str) -> list[str]:
        argv = ["robustness", str(weights), "--student", STUDENT, "--image-size", "32", "--data"]
        argv += [data, "--num-workers", "0", "--teacher", "pixels", "--teacher-image-size", "32"]
        return [*argv, "--output", str(tmp_path / "out"), *flags]

    return command


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


def metrics(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out" / "metrics.json").read_text())


@pytest.mark.parametrize("head", ["nn", "linear"])
def test_plain_and_restricted_accuracy(measure, other, tmp_path, capsys, head):
    argv = measure("--corruptions", "none", "--shifted", str(other), "--head", head)
    assert run(argv) == 0
    out = capsys.readouterr().out
    found = metrics(tmp_path)
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
    assert not (tmp_path / "out" / "robustness.json").exists()


def test_a_class_map_says_what_names_mean(measure, other, tmp_path, capsys):
    (other / "class0").rename(other / "chair")
    (other / "class1").rename(other / "spoon")
    paint(other / "unknown" / "0.png", RED)
    assert run(measure("--corruptions", "none", "--shifted", str(other))) == 2
    assert "'chair' and 2 more" in capsys.readouterr().err
    class_map = tmp_path / "map.csv"
    # A chair may be class0 or class1, of which the four are; a spoon is class2.
    class_map.write_text("name,class\nchair,class0\nchair,class1\nspoon,class2\n")
    flags = ["--shifted", str(other), "--class-map", str(class_map), "--corruptions", "none"]
    assert run(measure(*flags)) == 0
    assert metrics(tmp_path)["teacher_robustness_other_set_accuracy"] == 1
    assert "1 class folders stand for no training class" in capsys.readouterr().out


def test_frames_with_their_neighbors(measure, tmp_path, capsys):
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
    assert run(measure(*flags, "--frames-k", "1")) == 0
    assert run(measure(*flags)) == 0
    found = metrics(tmp_path)
    assert found["teacher_robustness_my_frames_anchor"] == 3 / 4
    assert found["teacher_robustness_my_frames_pm1"] == 3 / 4
    assert found["teacher_robustness_my_frames_pm10"] == 2 / 4
    assert found["teacher_robustness_my_frames_pm10_restricted"] == 2 / 4
    assert "my frames, 4 anchors: pm-10" in capsys.readouterr().out
    assert run(measure(*flags, "--frames-k", "-1")) == 2
    assert "--frames-k is -1; it must be at least 0" in capsys.readouterr().err
    # Unreadable frames are left out, and so are anchors that are unreadable.
    (tmp_path / "vid" / "c.png").unlink()
    assert run(measure(*flags)) == 2
    assert "c.png cannot be read as an image" in capsys.readouterr().err
    assert run(measure(*flags, "--on-bad-image", "skip")) == 0
    found = metrics(tmp_path)
    assert found["teacher_robustness_my_frames_anchor"] == 2 / 3
    assert found["teacher_robustness_my_frames_pm10"] == 2 / 3


def test_frames_are_restricted_to_the_labels_there_are(measure, tmp_path):
    paint(tmp_path / "vid" / "a.png", RED)
    paint(tmp_path / "vid" / "b.png", GREENISH_BLUE)
    frames = tmp_path / "vid" / "f.csv"
    frames.write_text("anchor,frame,label\na.png,a.png,zero\na.png,b.png,one\na.png,b.png,none\n")
    class_map = tmp_path / "map.json"
    class_map.write_text('{"zero": "class0", "one": "class1"}')
    flags = ["--corruptions", "none", "--frames", str(frames), "--class-map", str(class_map)]
    assert run(measure(*flags)) == 0
    found = metrics(tmp_path)
    assert found["teacher_robustness_f_anchor"] == 1
    assert found["teacher_robustness_f_pm10"] == 0  # b is taken for class2
    assert found["teacher_robustness_f_pm10_restricted"] == 1


def test_corruptions_and_shifts_together(measure, other, tmp_path):
    argv = measure("--corruptions", "contrast", "--severities", "1", "--shifted", str(other))
    assert run(argv) == 0
    found = metrics(tmp_path)
    assert {"robustness_mean_error", "teacher_robustness_other_set_accuracy"} <= set(found)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--corruptions", "none"], "leaves nothing to measure"),
        (["--class-map", "m.csv"], "--class-map goes with --shifted or --frames"),
        (["--shifted", "gone"], "no such folder: gone"),
        (["--frames", "gone.csv"], "cannot read the frames gone.csv"),
    ],
)
def test_mistakes_are_one_sentence(measure, tmp_path, capsys, flags, message):
    assert run(measure(*flags)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_two_folders_of_one_name(measure, other, tmp_path, capsys):
    paint(tmp_path / "more" / "other set" / "class0" / "0.png", RED)
    assert run(measure("--shifted", str(other), str(tmp_path / "more" / "other set"))) == 2
    assert "two folders of --shifted are called alike" in capsys.readouterr().err


def test_the_same_from_python(measure, other, tmp_path):
    found = distill.evaluate_robustness(
        tmp_path / "w.pth",
        student=STUDENT,
        image_size=32,
        data=str(tmp_path / "photos"),
        num_workers=0,
        corruptions=["none"],
        shifted=[str(other)],
    )
    assert run(measure("--corruptions", "none", "--shifted", str(other))) == 0
    assert found.items() <= metrics(tmp_path).items()
