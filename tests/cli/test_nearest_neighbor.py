"""`distill nn` on folders of a few small images."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import distill
from distill.cli.main import run
from distill.evaluation.agreement import neighbor_agreement
from distill.evaluation.nn import nn_scores
from students.registry import build_student

NETWORK = {"student": "timm:test_resnet", "image_size": 32}
FLAGS = ["--student", "timm:test_resnet", "--image-size", "32", "--num-workers", "0"]
PIXELS = ["--teacher", "pixels", "--teacher-image-size", "32"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = build_student(NETWORK["student"], image_size=NETWORK["image_size"])
    torch.save(network.backbone.state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.fixture
def data(make_folder) -> str:
    return str(make_folder())


@pytest.fixture
def argv(data, weights, tmp_path) -> list[str]:
    folder = ["--data", data, "--output", str(tmp_path / "measured")]
    return ["nn", str(weights), *FLAGS, *folder]


def kept(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "measured" / "metrics.json").read_text())


def recorded(monkeypatch, module: str, function) -> list[tuple]:
    """Return the calls that a job makes, which go through."""
    calls = []

    def record(*arguments, **options):
        found = function(*arguments, **options)
        calls.append((arguments, options, found))
        return found

    monkeypatch.setattr(f"distill.jobs.{module}.{function.__name__}", record)
    return calls


def test_several_numbers_come_from_one_search(argv, data, weights, tmp_path, capsys, monkeypatch):
    calls = recorded(monkeypatch, "nearest_neighbor", nn_scores)
    assert run([*argv, "--k", "1", "3", "9"]) == 0
    assert len(calls) == 1
    found = kept(tmp_path)
    assert list(found) == ["nn_accuracy", "nn_accuracy_k3", "nn_accuracy_k9"]
    assert f"nn_accuracy_k9  {found['nn_accuracy_k9']:.4f}" in capsys.readouterr().out
    again = distill.evaluate_nn(weights, data=data, num_workers=0, k=9, **NETWORK)
    assert again == {"nn_accuracy_k9": found["nn_accuracy_k9"]}
    assert run([*argv, "--k", "1", "3", "--vote", "weighted"]) == 0
    assert "nn_accuracy_k3_weighted" in kept(tmp_path)


def test_embeddings_are_read_where_they_lie(argv, monkeypatch):
    calls = recorded(monkeypatch, "nearest_neighbor", nn_scores)
    assert run(argv) == 0
    (train, _, val, _), _, _ = calls[0]
    assert (train.shape, val.shape) == ((36, 96), (12, 96))
    assert not isinstance(train, np.ndarray)


def test_classes_and_confusion_add_up(argv, tmp_path, capsys, monkeypatch):
    calls = recorded(monkeypatch, "nearest_neighbor", nn_scores)
    file = tmp_path / "confusion.csv"
    assert run([*argv, "--k", "3", "1", "--per-class", "--confusion", str(file)]) == 0
    scores = calls[0][2]
    header, *rows = csv.reader(file.open())
    assert header == ["true class", "class0", "class1", "class2"]
    assert [row[0] for row in rows] == header[1:]
    assert [[int(n) for n in row[1:]] for row in rows] == scores.confusion(3).tolist()
    out = capsys.readouterr().out
    assert "class   images  k = 3" in out
    for one in scores.by_class(3):
        line = next(x for x in out.splitlines() if x.startswith(header[1 + one.label] + " "))
        assert line.split()[1:3] == ["4", f"{one.accuracy:.4f}"]
    assert "true, then predicted  0  1  2" in out


def test_inverted_lists_say_what_they_miss(argv, data, weights, tmp_path):
    assert run([*argv, "--ivf", "--ivf-lists", "6", "--ivf-probes", "6", "--k", "5"]) == 0
    exact = distill.evaluate_nn(weights, data=data, num_workers=0, k=5, **NETWORK)
    assert kept(tmp_path) == {
        "nn_accuracy_k5_ivf": exact["nn_accuracy_k5"],
        "nn_recall_ivf": 1.0,
    }
    assert run([*argv, "--ivf", "--ivf-lists", "9", "--ivf-probes", "1", "--k", "2"]) == 0
    assert kept(tmp_path)["nn_recall_ivf"] < 1


def test_agreement_with_the_teacher(argv, tmp_path, capsys, monkeypatch):
    calls = recorded(monkeypatch, "agreement", neighbor_agreement)
    assert run([*argv, "--agreement", "--k", "1", "4", *PIXELS]) == 0
    (teacher, student), options, found = calls[0]
    assert (len(teacher), teacher.shape[1]) == (12, 3 * 32 * 32)
    assert student.shape == (12, 96)
    assert options == {"ks": (1, 4), "num_sampled": 10_000, "seed": 0}
    measured = kept(tmp_path)
    assert measured["neighbor_agreement_k4"] == found.agreement[4]
    assert list(measured)[-2:] == ["neighbor_agreement_k1", "neighbor_agreement_k4"]
    out = capsys.readouterr().out
    assert "12 of 12 images of photos/val, among each other" in out
    assert f"4  {found.agreement[4]:.4f}     {4 / 11:.4f}" in out


def test_a_teacher_agrees_with_itself(data, tmp_path):
    run_dir = tmp_path / "run"
    train = [*FLAGS, *PIXELS, "--data", data, "--output", str(run_dir)]
    assert run(["train", *train, "--epochs", "1", "--batch-size", "8"]) == 0
    found = distill.evaluate_nn(run_dir, agreement=True, agreement_images=5, num_workers=0)
    assert 0 <= found["neighbor_agreement_k1"] <= 1  # the run's own teacher, unasked
    itself = distill.evaluate_nn(
        run_dir, agreement=True, teacher=str(run_dir), k=(1, 5), num_workers=0
    )
    assert itself["neighbor_agreement_k1"] == itself["neighbor_agreement_k5"] == 1


def test_agreement_needs_no_labels(make_folder, weights, tmp_path):
    data = make_folder(num_val=0)
    argv = ["nn", str(weights), *FLAGS, "--data", str(data / "train"), *PIXELS]
    assert run([*argv, "--agreement", "--k", "3", "--output", str(tmp_path / "measured")]) == 0
    assert list(kept(tmp_path)) == ["neighbor_agreement_k3"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--agreement"], "w.pth names none; add --teacher"),
        (["--k"], "no k was given, name one or more between 1"),
        (["--k", "1", "37"], "k is 37, it must be between 1 and the number of indexed images, 36"),
        (
            ["--agreement", *PIXELS, "--k", "12"],
            "k is 12, it must be between 1 and the number of o",
        ),
        (["--agreement", *PIXELS, "--agreement-images", "0"], "--agreement-images is 0, it must"),
        (["--ivf", "--ivf-lists", "99"], "lists is 99, it must be between 1 and the number of ind"),
        (["--ivf", "--ivf-probes", "0"], "probes is 0, it must be 1 or more"),
        (["--seed", "-1"], "seed is -1"),
        (["--confusion", "nowhere/c.csv"], "lies in a folder that is not there; name a file such"),
        (["--teacher-image-size", "32"], "names none; add --teacher"),
    ],
)
def test_mistakes_are_one_sentence(argv, tmp_path, capsys, flags, message):
    assert run([*argv, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "measured").exists()
