"""Linear classifiers from the command line, on folders of a few small images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import distill
from distill.cli.main import run
from distill.embeddings.cache import StoredEmbeddings
from distill.evaluation import linear as linear_probe
from distill.evaluation import linear_heads as standardize
from distill.evaluation.linear import ClassScores, class_balanced_subset
from distill.evaluation.linear_heads import PUBLISHED_SCHEDULE
from students.registry import build_student

NETWORK = {"student": "timm:test_resnet", "image_size": 32}
FLAGS = ["--student", "timm:test_resnet", "--image-size", "32", "--num-workers", "0"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = build_student(NETWORK["student"], image_size=NETWORK["image_size"])
    torch.save(network.backbone.state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.fixture
def measure(make_folder, weights, tmp_path):
    """Return a function from flags to what metrics.json then holds."""
    data, output = make_folder(), tmp_path / "measured"

    def run_linear(*flags: str) -> dict:
        argv = ["linear", str(weights), *FLAGS, "--data", str(data), "--output", str(output)]
        assert run([*argv, *flags]) == 0
        return json.loads((output / "metrics.json").read_text())

    return run_linear


def test_the_number_is_printed_kept_and_the_same_from_python(measure, weights, tmp_path, capsys):
    measured = measure("--per-class")
    assert list(measured) == ["linear_accuracy"]  # three classes have no top-5
    assert 1 / 3 < measured["linear_accuracy"] <= 1
    shown = capsys.readouterr().out
    assert f"linear_accuracy  {measured['linear_accuracy']:.4f}" in shown
    of_classes = [line.split() for line in shown.splitlines() if line.startswith("class")]
    assert [name for name, _ in of_classes] == ["class", "class0", "class1", "class2"]
    mean = np.mean([float(share) for _, share in of_classes[1:]])  # classes of one size
    np.testing.assert_allclose(mean, measured["linear_accuracy"], atol=1e-4)
    data = str(tmp_path / "photos")
    found = distill.evaluate_linear(weights, data=data, num_workers=0, **NETWORK)
    assert found == measured


def test_embeddings_are_read_from_the_disk_as_they_are_needed(measure, monkeypatch):
    def refuse(stored):
        raise AssertionError("all of them at once")

    in_memory = measure()
    monkeypatch.setattr(StoredEmbeddings, "in_memory", refuse)
    monkeypatch.setattr(standardize, "_SHARE_OF_MEMORY", 0.0)
    assert measure() == pytest.approx(in_memory)
    assert 0 < measure("--labels", "0.5")["linear_accuracy_labels_0.5"] <= 1


def test_digits_have_a_top5(weights, tmp_path):
    found = distill.evaluate_linear(weights, data="digits", num_workers=0, **NETWORK)
    assert list(found) == ["linear_accuracy", "linear_top5_accuracy"]
    assert 0.5 < found["linear_accuracy"] < found["linear_top5_accuracy"]


def test_a_sweep_keeps_the_published_number_and_says_what_it_chose(measure, capsys):
    published = measure()["linear_accuracy"]
    measured = measure(
        "--sweep", "--learning-rates", "1e-6", "0.01", "0.1", "--weight-decays", "1e-5", "1e-4"
    )
    assert list(measured) == [
        "linear_accuracy",
        "linear_accuracy_sweep",
        "linear_sweep_learning_rate",
        "linear_sweep_weight_decay",
    ]
    assert measured["linear_accuracy"] == published
    assert measured["linear_sweep_learning_rate"] in (0.01, 0.1)
    shown = capsys.readouterr().out
    assert "learning rate  weight decay  held out" in shown
    assert f"linear_sweep_weight_decay   {measured['linear_sweep_weight_decay']:g}" in shown


def test_logistic_regression(measure, capsys):
    measured = measure("--method", "logistic")
    assert list(measured) == ["linear_accuracy_logistic"]
    assert measured["linear_accuracy_logistic"] > 1 / 3
    assert "penalty  held out" in capsys.readouterr().out


def test_few_labels_are_drawn_by_several_seeds(measure, capsys):
    measured = measure("--labels", "0.25", "--label-seeds", "3", "--seed", "7")
    names = ["linear_accuracy_labels_0.25", "linear_accuracy_labels_0.25_std"]
    assert list(measured) == names
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("by seed") + 2
    drawn = [line.split() for line in lines[start : start + 3]]
    assert [seed for seed, _ in drawn] == ["7", "8", "9"]
    shares = [float(share) for _, share in drawn]
    np.testing.assert_allclose(measured[names[0]], np.mean(shares), atol=1e-4)
    np.testing.assert_allclose(measured[names[1]], np.std(shares, ddof=1), atol=1e-4)


def test_mean_and_standard_deviation_over_seeds_by_hand(measure, monkeypatch):
    drawn = []

    def scored(self, *, rows, seed):
        drawn.append((seed, rows.tolist()))
        accuracy = {3: 0.5, 4: 0.7, 5: 0.9}[seed]
        return linear_probe.Found(
            {"": ClassScores(accuracy, None, np.full(3, accuracy), 0.0)}, [], []
        )

    monkeypatch.setattr(linear_probe.LinearProbe, "measure", scored)
    measured = measure("--labels", "0.25", "--label-seeds", "3", "--seed", "3")
    np.testing.assert_allclose(measured["linear_accuracy_labels_0.25"], 0.7)
    np.testing.assert_allclose(measured["linear_accuracy_labels_0.25_std"], 0.2)
    labels = np.repeat(np.arange(3), 12)
    for seed, rows in drawn:
        assert rows == class_balanced_subset(labels, 0.25, seed=seed).tolist()
    assert [seed for seed, _ in drawn] == [3, 4, 5]


def test_a_list_and_images_that_cannot_be_read(measure, tmp_path, monkeypatch):
    chosen = []
    original = linear_probe.LinearProbe.measure

    def record(self, *, rows, seed):
        chosen.append(rows.tolist())
        return original(self, rows=rows, seed=seed)

    monkeypatch.setattr(linear_probe.LinearProbe, "measure", record)
    (tmp_path / "photos/train/class0/000.png").write_bytes(b"")
    listed = tmp_path / "few.txt"
    listed.write_text("class2/003.png\nclass0/001.png\nclass0/000.png\n")
    measure("--labels", str(listed), "--label-seeds", "1", "--on-bad-image", "skip")
    assert chosen == [[0, 26]]  # rows of the embedded images


def test_all_labels_are_a_share_too(measure):
    measured = measure("--labels", "1", "--label-seeds", "1")
    assert list(measured) == ["linear_accuracy_labels_1"]
    assert measured["linear_accuracy_labels_1"] == measure()["linear_accuracy"]


def test_a_list_of_names(measure, tmp_path, monkeypatch, capsys):
    rows = []
    original = linear_probe.linear_evaluation

    def record(data, **arguments):
        rows.append((data.train_labels[arguments["rows"]], arguments["rows"]))
        return original(data, **arguments)

    monkeypatch.setattr(linear_probe, "linear_evaluation", record)
    listed = tmp_path / "few.txt"
    listed.write_text("class2/003.png\nclass0/001.png\nclass2/001.png\n")
    measured = measure("--labels", str(listed), "--label-seeds", "2", "--method", "sgd")
    assert list(measured) == ["linear_accuracy_labels_few", "linear_accuracy_labels_few_std"]
    for labels, chosen in rows:
        assert labels.tolist() == [0, 2, 2]
        assert chosen.tolist() == [1, 25, 27]
    listed.write_text("001.png\n")
    argv = ["linear", str(tmp_path / "w.pth"), *FLAGS, "--data", str(tmp_path / "photos")]
    assert run([*argv, "--labels", str(listed)]) == 2
    assert "several training images are called 001.png" in capsys.readouterr().err
    listed.write_text("class0/099.png\n")
    assert run([*argv, "--labels", str(listed)]) == 2
    assert "1 of 1 names are not among the training images" in capsys.readouterr().err
    listed.write_text("class0/001.png\n")
    assert run([*argv, "--labels", str(listed)]) == 2
    assert "the labeled training images are of 1 class" in capsys.readouterr().err
    assert run([*argv, "--data", "digits", "--labels", str(listed)]) == 2
    assert "digits/train are not files" in capsys.readouterr().err


def test_layers_are_measured_each(measure, capsys):
    measured = measure("--layers", "all")
    assert list(measured) == [f"linear_accuracy_layer_stage{i}" for i in range(1, 5)]
    shown = capsys.readouterr().out
    assert "layer   width  linear_accuracy" in shown
    both = measure("--layers", "layer1.0.conv1", "stage4", "--sweep", "--learning-rates", "0.1")
    assert "linear_accuracy_layer_layer1.0.conv1" in both
    assert "linear_accuracy_sweep_layer_stage4" in both
    assert both["linear_accuracy_layer_stage4"] == measured["linear_accuracy_layer_stage4"]


def test_the_last_layer_is_the_embedding(weights, tmp_path, make_folder):
    data = str(make_folder())
    settings = {"data": data, "num_workers": 0, **NETWORK}
    pooled = distill.evaluate_linear(weights, layers=("global_pool",), **settings)
    whole = distill.evaluate_linear(weights, **settings)
    assert pooled["linear_accuracy_layer_global_pool"] == whole["linear_accuracy"]


def test_layers_that_memory_does_not_hold(measure, weights, tmp_path, monkeypatch, capsys):
    measure("--layers", "stage4")
    monkeypatch.setattr("distill.device.free_memory", lambda device: 1000)
    argv = ["linear", str(weights), *FLAGS, "--data", str(tmp_path / "photos")]
    assert run([*argv, "--layers", "all"]) == 2
    assert "name fewer of them with --layers" in capsys.readouterr().err


def test_augmented_images_are_embedded_at_every_step(measure, monkeypatch, tmp_path):
    monkeypatch.setattr(
        linear_probe, "PUBLISHED_SCHEDULE", replace(PUBLISHED_SCHEDULE, num_epochs=3)
    )
    seen, indices = [], []
    original = linear_probe.AugmentedBatches.__call__

    def record(self, rows, standardizer):
        indices.append(self.index[rows].tolist())
        for batch in original(self, rows, standardizer):
            seen.append((self.augmentation, self.seed, batch.epoch, len(batch.labels)))
            yield batch

    monkeypatch.setattr(linear_probe.AugmentedBatches, "__call__", record)
    measured = measure("--augment", "--seed", "4")
    assert list(measured) == ["linear_accuracy_augmented"]
    assert seen == [("crop-flip", 4, epoch, 36) for epoch in range(3)]
    measured = measure("--augment", "--labels", "0.5", "--label-seeds", "1")
    assert "linear_accuracy_labels_0.5_augmented" in measured
    assert [size for _, _, _, size in seen[3:]] == [18] * 3
    (tmp_path / "photos/train/class0/000.png").write_bytes(b"")
    measure("--augment", "--on-bad-image", "skip")
    assert indices[-1] == list(range(1, 36))


def test_weights_that_are_damaged(make_folder, weights, tmp_path, capsys):
    state = torch.load(weights)
    name = next(name for name in state if name.endswith("weight"))
    state[name][...] = torch.nan
    torch.save(state, weights)
    data = make_folder()
    assert run(["linear", str(weights), *FLAGS, "--data", str(data)]) == 2
    assert "000.png holds nan, computed in" in capsys.readouterr().err
