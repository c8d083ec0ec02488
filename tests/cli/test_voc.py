"""Transfer to VOC from the command line, on folders of a few images of colored squares."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import distill
from distill.cli.main import run
from distill.data.sources import BadImages
from distill.data.voc import open_voc
from distill.evaluation import detection
from distill.evaluation import voc as job
from distill.evaluation.voc import VocMeasurement
from students.registry import build_student

NETWORK = {"student": "timm:test_resnet", "image_size": 32}
FLAGS = ["--student", "timm:test_resnet", "--image-size", "32", "--num-workers", "0"]
DETECTION = ["--task", "detection", "--steps", "2", "--batch-size", "1", "--detector-size", "64"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = build_student(NETWORK["student"], image_size=NETWORK["image_size"])
    torch.save(network.backbone.state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.fixture
def complaint(capsys, weights):
    """Return a function that runs `distill voc` and returns its one sentence."""

    def complain(*flags: str) -> str:
        assert run(["voc", str(weights), *FLAGS, *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith("distill: error: ")
        assert len(error.strip().splitlines()) == 1
        return error

    return complain


def kept(output: Path) -> dict:
    return json.loads((output / "metrics.json").read_text())


def test_classification_is_printed_kept_and_the_same_from_python(
    make_voc, weights, tmp_path, capsys
):
    data, output = make_voc(num_train=24, num_test=12), tmp_path / "measured"
    argv = ["voc", str(weights), *FLAGS, "--data", str(data), "--output", str(output)]
    assert run(argv) == 0
    printed, measured = capsys.readouterr().out, kept(output)
    assert list(measured) == [
        "voc_classification_map",
        "voc_classification_map_area",
        "voc_classification_ap",
        "voc_classification_definition",
    ]
    definition = measured["voc_classification_definition"]
    assert re.fullmatch(r"12 images of .*test.*, learned from 24 of .*trainval.*", definition)
    by_class = measured["voc_classification_ap"]
    assert list(by_class) == ["blue", "green", "red"]
    for name, rule in (("map", "voc07"), ("map_area", "area")):
        mean = np.mean([precisions[rule] for precisions in by_class.values()])
        assert measured[f"voc_classification_{name}"] == pytest.approx(mean)
    assert measured["voc_classification_map_area"] > 0.6  # a third of the images show a class
    assert f"voc_classification_map       {measured['voc_classification_map']:.4f}" in printed
    blue = by_class["blue"]
    assert re.search(f"blue +{blue['voc07']:.4f} +{blue['area']:.4f}", printed)
    found = distill.evaluate_voc(weights, data=str(data), num_workers=0, **NETWORK)
    assert found == measured


def test_logistic_and_detection_stand_beside_it(make_voc, weights, tmp_path):
    data, output = make_voc(), tmp_path / "measured"
    argv = ["voc", str(weights), *FLAGS, "--data", str(data), "--output", str(output)]
    assert run([*argv, "--classifier", "logistic"]) == 0
    assert run([*argv, *DETECTION]) == 0
    assert list(kept(output)) == [
        "voc_classification_logistic_map",
        "voc_classification_logistic_map_area",
        "voc_classification_logistic_ap",
        "voc_classification_logistic_definition",
        "voc_detection_map",
        "voc_detection_map_area",
        "voc_detection_ap",
        "voc_detection_definition",
    ]
    assert "steps of" in kept(output)["voc_detection_definition"]
    assert 0 <= kept(output)["voc_detection_map"] <= 1


def test_the_options_of_detection_arrive(make_voc, weights, monkeypatch):
    received = []

    def build(network, num_classes, *, image_size):
        received.append((num_classes, image_size, torch.initial_seed()))
        return torch.nn.Identity()

    def tune(detector, images, index, options, how):
        assert isinstance(how.on_bad_images, BadImages)
        assert how.num_workers == 0
        received.append((images.name, len(index), options))

    def find(detector, images, index, how):
        nothing = detection.Boxes(np.zeros(0, np.int64), np.zeros((0, 4)))
        received.append((images.name, len(index)))
        return detection.Detections(nothing, np.zeros(0), np.zeros(0), index)

    monkeypatch.setattr(job, "build_detector", build)
    monkeypatch.setattr(job, "fine_tune", tune)
    monkeypatch.setattr(job, "detect", find)
    found = distill.evaluate_voc(
        weights,
        data=str(make_voc()),
        num_workers=0,
        task="detection",
        steps=7,
        batch_size=3,
        learning_rate=0.5,
        detector_size=96,
        seed=5,
        **NETWORK,
    )
    assert received[0] == (3, 96, 5)
    tuning = detection.FineTuning(steps=7, batch_size=3, learning_rate=0.5, seed=5)
    assert received[1:] == [("VOC2007/trainval", 12, tuning), ("VOC2007/test", 6)]
    assert found["voc_detection_map"] == 0


def test_the_seed_and_classifier_of_classification_arrive(make_voc, weights, monkeypatch):
    data, received = make_voc(), []
    classify = job.classify

    def record(train, presence, test, **options):
        received.append((train.shape, presence.tolist(), test.shape, options))
        return classify(train, presence, test, **options)

    monkeypatch.setattr(job, "classify", record)
    options = {"seed": 3, "classifier": "logistic", "test_split": "trainval"}
    distill.evaluate_voc(weights, data=str(data), num_workers=0, **NETWORK, **options)
    train_shape, presence, test_shape, arrived = received[0]
    assert train_shape == test_shape == (12, train_shape[1])
    assert presence == open_voc(data).train.presence().tolist()
    assert arrived == {"classes": ("blue", "green", "red"), "classifier": "logistic", "seed": 3}


def test_unreadable_images_end_it_or_are_skipped(make_voc, weights, complaint, capsys):
    data = make_voc()
    (data / "VOC2007/JPEGImages/trainval003.png").write_bytes(b"x")
    (data / "VOC2007/JPEGImages/test002.png").write_bytes(b"x")
    assert "trainval003.png" in complaint("--data", str(data))
    for flags in ([], DETECTION):
        argv = ["voc", str(weights), *FLAGS, "--data", str(data), *flags]
        assert run([*argv, "--on-bad-image", "skip"]) == 0
        printed = capsys.readouterr().out
        assert printed.count("trainval003.png: cannot be read") == 1
        assert printed.count("test002.png: cannot be read") == 1


def test_what_images_show_stays_theirs_when_others_are_skipped(make_voc, weights, monkeypatch):
    data, received = make_voc(), []
    for name in ("trainval003", "test002"):
        (data / f"VOC2007/JPEGImages/{name}.png").write_bytes(b"x")

    def record(train, presence, test, **options):
        received.append(presence.tolist())
        return job_classify(train, presence, test, **options)

    def record_aps(scores, presence):
        received.append(presence.tolist())
        return job_aps(scores, presence)

    job_classify, job_aps = job.classify, job.classification_aps
    monkeypatch.setattr(job, "classify", record)
    monkeypatch.setattr(job, "classification_aps", record_aps)
    options = {"num_workers": 0, "on_bad_image": "skip", **NETWORK}
    distill.evaluate_voc(weights, data=str(data), **options)
    opened = open_voc(data)
    train, test = opened.train.presence().tolist(), opened.val.presence().tolist()
    assert received == [train[:3] + train[4:], test[:2] + test[3:]]


def test_a_class_without_a_test_object_is_shown_as_such():
    per_class = {"voc07": np.array([0.5, math.nan]), "area": np.array([0.25, math.nan])}
    measured = VocMeasurement("voc_detection", ("cat", "dog"), per_class, "of what")
    assert measured.metrics() == {
        "voc_detection_map": 0.5,
        "voc_detection_map_area": 0.25,
        "voc_detection_ap": {
            "cat": {"voc07": 0.5, "area": 0.25},
            "dog": {"voc07": None, "area": None},
        },
        "voc_detection_definition": "of what",
    }


def test_data_that_cannot_be_taken(complaint, make_voc, make_folder, tmp_path):
    data = make_voc()
    assert "--data is missing: name a VOCdevkit folder" in complaint()
    assert "no folder at" in complaint("--data", str(tmp_path / "absent"))
    assert "is not in VOC layout" in complaint("--data", str(make_folder()))
    error = complaint("--data", str(data), "--test-split", "tset")
    assert "unknown split 'tset': did you mean 'test'" in error
    path = data / "VOC2007/Annotations/trainval000.xml"
    path.write_bytes(path.read_bytes()[:-10])
    assert "trainval000.xml is no whole XML file" in complaint("--data", str(data))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--steps 0", "--steps is 0, it must be at least 1"),
        ("--batch-size 0", "--batch-size is 0, it must be at least 1"),
        ("--detector-size 31", "--detector-size is 31, it must be at least 32"),
        ("--learning-rate nan", "--learning-rate is nan, it must be positive"),
        ("--learning-rate 0", "--learning-rate is 0.0, it must be positive"),
        ("--seed -1", "--seed is -1, it must be at least 0"),
    ],
)
def test_numbers_out_of_range(complaint, flags, message):
    assert message in complaint("--data", "nowhere", *flags.split())


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as end:
        run(["voc", "--help"])
    assert end.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_ends_with_1(make_voc, weights, capsys):
    argv = ["voc", str(weights), *FLAGS, "--data", str(make_voc()), *DETECTION]
    assert run([*argv, "--steps", "20", "--learning-rate", "1e30"]) == 1
    assert "the detector's loss is" in capsys.readouterr().err
