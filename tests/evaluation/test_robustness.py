"""`distill robustness` on folders of a few small images: numbers, continuing, mistakes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.cli.main import run
from distill.data.corruptions import corrupt
from distill.evaluation import corruption as module
from distill.evaluation.base import evaluate
from distill.evaluation.frozen_classifier import FrozenClassifier
from distill.evaluation.robustness import sample_images
from students.registry import build_student

STUDENT = "timm:test_resnet"
NETWORK = {"student": STUDENT, "image_size": 32, "num_workers": 0}
FLAGS = ["--student", STUDENT, "--image-size", "32", "--num-workers", "0"]
PIXELS = ["--teacher", "pixels", "--teacher-image-size", "32"]
TWO = ["--corruptions", "contrast", "pixelate", "--severities", "1", "5"]


@pytest.fixture
def passes(monkeypatch) -> list[str]:
    """Return what `FrozenClassifier.error` was asked for, as it is asked."""
    asked = []
    measure = FrozenClassifier.error

    def record(self, view=None, *, description=""):
        asked.append(f"{self.role} clean" if view is None else f"{self.role} {description}")
        return measure(self, view, description=description)

    monkeypatch.setattr(FrozenClassifier, "error", record)
    return asked


def robustness(run_or_weights, **options) -> dict:
    return evaluate("robustness", run_or_weights, **options).metrics


def read(output: Path, name: str = "metrics.json") -> dict:
    return json.loads((output / name).read_text())


def test_student_and_teacher_side_by_side(make_folder, weights, tmp_path, capsys):
    data, output = make_folder(), tmp_path / "out"
    argv = ["robustness", str(weights), *FLAGS, "--data", str(data), "--output", str(output)]
    assert run([*argv, *TWO, *PIXELS]) == 0
    out = capsys.readouterr().out
    metrics = read(output)
    names = ["robustness_definition", "robustness_clean_error"]
    names += ["robustness_mean_error", "robustness_gap"]
    assert list(metrics) == [*names, *(f"teacher_{name}" for name in names)]
    student, teacher = read(output, "robustness.json").values()
    assert (student["network"], teacher["network"]) == ("student", "teacher")
    for prefix, record in (("", student), ("teacher_", teacher)):
        errors = record["errors"]
        assert {name: list(by) for name, by in errors.items()} == {
            "contrast": ["1", "5"],
            "pixelate": ["1", "5"],
        }
        mean = np.mean([*errors["contrast"].values(), *errors["pixelate"].values()])
        assert metrics[f"{prefix}robustness_mean_error"] == pytest.approx(mean)
        assert metrics[f"{prefix}robustness_clean_error"] == record["clean_error"]
        gap = metrics[f"{prefix}robustness_gap"]
        assert gap == pytest.approx(mean - record["clean_error"])
    assert metrics["teacher_robustness_clean_error"] == 0  # a hue for each class
    header = next(line for line in out.splitlines() if line.startswith("error"))
    assert header.split() == ["error", "student", "-", "clean", "teacher", "-", "clean"]
    row = next(line.split() for line in out.splitlines() if line.startswith("contrast"))
    of_contrast = np.mean(list(teacher["errors"]["contrast"].values()))
    assert row[3:] == [f"{of_contrast:.4f}", f"{of_contrast:+.4f}"]
    assert "student: corrupted at 32 px" in out
    assert "not the same as, the published ImageNet-C JPEG files" in out
    assert "teacher: no mCE, AlexNet's errors are known for ImageNet's 1,000 classes only" in out
    found = robustness(
        weights,
        data=str(data),
        corruptions=["contrast", "pixelate"],
        severities=(1, 5),
        **NETWORK,
    )
    assert found == {name: metrics[name] for name in names}


def test_what_was_interrupted_goes_on_and_other_settings_do_not_mix(
    make_folder, weights, tmp_path, monkeypatch, passes
):
    data, output = make_folder(), tmp_path / "out"
    argv = ["robustness", str(weights), *FLAGS, "--data", str(data), "--output", str(output)]
    counted = module.corrupt

    def stop_at_pixelate(pixels, corruption, severity, *, seed):
        if (corruption, severity) == ("pixelate", 1):
            raise KeyboardInterrupt
        return counted(pixels, corruption, severity, seed=seed)

    monkeypatch.setattr(module, "corrupt", stop_at_pixelate)
    assert run([*argv, *TWO]) == 130
    (record,) = read(output, "robustness.json").values()
    assert record["errors"].keys() == {"contrast"}
    assert not (output / "metrics.json").exists()
    monkeypatch.setattr(module, "corrupt", counted)
    passes.clear()
    assert run([*argv, *TWO]) == 0
    assert passes == ["student pixelate 1 (3/4)", "student pixelate 5 (4/4)"]
    whole = tmp_path / "whole"
    assert run([*argv[:-1], str(whole), *TWO]) == 0
    assert read(whole, "robustness.json") == read(output, "robustness.json")
    passes.clear()
    assert run([*argv, *TWO]) == 0
    assert passes == []
    assert run([*argv, *TWO, "--severities", "5"]) == 0  # a part of what is known
    assert passes == []
    assert len(read(output, "robustness.json")) == 1
    for number, other in enumerate(
        (["--seed", "1"], ["--head", "linear"], ["--num-images", "7"]), start=2
    ):
        passes.clear()
        assert run([*argv, "--corruptions", "contrast", "--severities", "1", *other]) == 0
        assert passes == ["student clean", "student contrast 1 (1/1)"]
        assert len(read(output, "robustness.json")) == number
    other_images = make_folder("others", num_val=5)
    passes.clear()
    assert run([*argv, *TWO, "--data", str(other_images)]) == 0
    assert len(passes) == 5


def test_the_error_is_of_corrupted_crops_with_the_seed(make_folder, weights, tmp_path, monkeypatch):
    seen = []

    def record(pixels, corruption, severity, *, seed):
        seen.append((pixels.shape, corruption, severity, seed))
        return corrupt(pixels, corruption, severity, seed=seed)

    monkeypatch.setattr(module, "corrupt", record)
    options = {"data": str(make_folder()), "corruptions": ("snow",), "severities": (4,), **NETWORK}
    robustness(weights, **options)
    first, seen[:] = list(seen), []
    assert [entry[:3] for entry in first] == 12 * [((32, 32, 3), "snow", 4)]
    assert len({entry[3] for entry in first}) == 12
    robustness(weights, num_images=5, **options)
    assert len(seen) == 5
    assert set(seen) < set(first)  # the same images are corrupted in the same way
    drawn, seen[:] = list(seen), []
    robustness(weights, num_images=5, seed=1, **options)
    assert not set(seen) & set(drawn)


def test_a_run_brings_its_teacher(make_folder, make_student, tmp_path, capsys):
    data, output = make_folder(), tmp_path / "run"
    make_student(output)
    (output / "config.yaml").write_text(
        f"command: train\nteacher: pixels\nteacher_image_size: 40\ndata: {data}\n"
    )
    found = robustness(output, corruptions=("contrast",), severities=(1,))
    assert "teacher_robustness_mean_error" in found
    definition = f"errors under contrast at severity 1 of 12 images of {data.name}/val, head nn"
    assert found["robustness_definition"] == definition
    records = read(output, "robustness.json").values()
    sizes = {record["network"]: record["settings"]["input"]["image_size"] for record in records}
    assert sizes == {"student": 32, "teacher": 40}
    only = ["robustness", str(output), "--corruptions", "contrast", "--severities", "1"]
    capsys.readouterr()
    assert run([*only, "--no-teacher"]) == 0
    assert "teacher" not in capsys.readouterr().out
    assert run([*only, *PIXELS]) == 0
    newest = list(read(output, "robustness.json").values())[-1]
    assert newest["settings"]["input"]["image_size"] == 32
    assert run([*only, "--teacher", "pixels", "--teacher-image-size", "16"]) == 2
    assert "teacher's view has 16 x 16 pixels" in capsys.readouterr().err
    config = (output / "config.yaml").read_text()
    (output / "config.yaml").write_text(config.replace("teacher: pixels", "teacher: pixelz"))
    assert run(only) == 2
    error = capsys.readouterr().err
    assert "the run's teacher: unknown teacher 'pixelz'" in error
    assert "or pass --no-teacher" in error


def test_mce_is_given_where_it_is_defined(make_folder, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("distill.evaluation.corruption.why_no_mce", lambda *given: None)
    for name in ("robustness", "corruption"):
        monkeypatch.setattr(f"distill.evaluation.{name}.prepare", lambda corruptions: "a package")
    monkeypatch.setattr(FrozenClassifier, "error", lambda self, view=None, **_: 0.5)
    data = make_folder()
    found = robustness(weights, data=str(data), **NETWORK)
    assert found["robustness_mce"] == pytest.approx(1.29345 / 2, abs=1e-5)
    assert found["robustness_gap"] == 0
    assert "under all 15 corruptions at severities 1, 2, 3, 4, 5" in found["robustness_definition"]
    assert run(["robustness", str(weights), *FLAGS, "--data", str(data)]) == 0
    assert "mCE                0.6467\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--corruptions", "fogg"], "unknown corruption 'fogg': did you mean 'fog'"),
        (["--severities", "6"], "--severities is (6,), each must be between 1 and 5"),
        (["--num-images", "13"], "--num-images is 13 and there are 12 validation images"),
        (["--num-images", "0"], "--num-images is 0, it must be at least 1"),
        (["--seed", "-1"], "--seed is -1, it must be between 0 and"),
        (["--image-size", "31"], "the student's view has 31 x 31 pixels"),
        (["--no-teacher", "--teacher", "pixels"], "--no-teacher contradicts the other"),
        (["--teacher-image-size", "32"], "names none; add --teacher"),
    ],
)
def test_mistakes_are_one_sentence(make_folder, weights, tmp_path, capsys, flags, message):
    argv = ["robustness", str(weights), *FLAGS, "--data", str(make_folder())]
    output = tmp_path / "out"
    assert run([*argv, "--output", str(output), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not output.exists()


def test_without_the_package_labels_or_val(make_folder, weights, tmp_path, capsys, monkeypatch):
    argv = ["robustness", str(weights), *FLAGS, "--data"]
    no_val = make_folder("no-val", num_val=0)
    assert run([*argv, str(no_val)]) == 2
    assert "has no validation images" in capsys.readouterr().err
    assert run([*argv, str(no_val / "train" / "class0")]) == 2
    assert "has no validation images" in capsys.readouterr().err
    unlabeled = tmp_path / "unlabeled"
    (no_val / "train" / "class0").rename(tmp_path / "loose")
    (unlabeled / "train").mkdir(parents=True)
    for image in (tmp_path / "loose").iterdir():
        image.rename(unlabeled / "train" / image.name)
    (unlabeled / "val").symlink_to(unlabeled / "train")
    assert run([*argv, str(unlabeled)]) == 2
    assert "have no labels" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    assert run([*argv, str(make_folder())]) == 2
    assert "pip install 'distill-vision[robustness]'" in capsys.readouterr().err


def test_a_damaged_record_is_named(make_folder, weights, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    for content in ("{", "[]"):
        (output / "robustness.json").write_text(content)
        argv = ["robustness", str(weights), *FLAGS, *TWO, "--data", str(make_folder(content[0]))]
        assert run([*argv, "--output", str(output)]) == 2
        assert "robustness.json is damaged" in capsys.readouterr().err


def test_known_errors_count_only_where_asked_for_and_only_of_these_weights(
    make_folder, weights, tmp_path, monkeypatch
):
    asked = []

    def by_severity(self, view=None, *, description=""):
        asked.append(view and view.severity)
        return 0.05 if view is None else view.severity / 10

    monkeypatch.setattr(FrozenClassifier, "error", by_severity)
    options = {"data": str(make_folder()), "corruptions": ["fog"], "output": tmp_path / "out"}
    both = robustness(weights, severities=[1, 5], **options, **NETWORK)
    assert both["robustness_mean_error"] == pytest.approx(0.3)
    assert both["robustness_gap"] == pytest.approx(0.25)
    one = robustness(weights, severities=[5], **options, **NETWORK)
    assert one["robustness_mean_error"] == 0.5
    assert asked == [None, 1, 5]
    torch.manual_seed(1)
    others = tmp_path / "others.pth"
    torch.save(build_student(STUDENT, image_size=32).backbone.state_dict(), others)
    robustness(others, severities=[5], **options, **NETWORK)
    assert asked == [None, 1, 5, None, 5]


def test_the_sample_is_of_the_seed_and_in_order():
    index = np.arange(100, 200)
    drawn = [sample_images(index, 20, seed=seed).tolist() for seed in (0, 1)]
    assert drawn[0] == sample_images(index, 20, seed=0).tolist()
    assert drawn[0] != drawn[1]
    for one in drawn:
        assert one == sorted(set(one) & set(index.tolist()))
        assert len(one) == 20
    assert sample_images(index, None, seed=0).tolist() == index.tolist()
