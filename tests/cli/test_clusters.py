"""Cluster alignment from the command line, on folders of a few small images."""

import json
from pathlib import Path

import pytest
import torch

import distill
from distill.cli.main import run
from distill.jobs.evaluator import EmbeddedSplits
from students import build_student

NETWORK = {"student": "timm:test_resnet", "image_size": 32}
FLAGS = ["--student", "timm:test_resnet", "--image-size", "32", "--num-workers", "0"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = build_student(NETWORK["student"], image_size=NETWORK["image_size"])
    torch.save(network.backbone.state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


def kept(output: Path) -> dict:
    return json.loads((output / "metrics.json").read_text())


def test_the_number_is_printed_kept_and_the_same_from_python(
    make_folder, weights, tmp_path, capsys
):
    data, output = make_folder(), tmp_path / "measured"
    argv = ["clusters", str(weights), *FLAGS, "--data", str(data), "--output", str(output)]
    assert run(argv) == 0
    measured = kept(output)
    assert list(measured) == ["cluster_alignment"]
    assert 1 / 3 <= measured["cluster_alignment"] <= 1
    assert f"cluster_alignment  {measured['cluster_alignment']:.4f}" in capsys.readouterr().out
    found = distill.evaluate_clusters(weights, data=str(data), num_workers=0, **NETWORK)
    assert found == measured


def test_the_metric_says_how_many_clusters_unless_as_many_as_classes(
    make_folder, weights, tmp_path
):
    data, output = make_folder(), tmp_path / "measured"
    argv = ["clusters", str(weights), *FLAGS, "--data", str(data), "--output", str(output)]
    assert run([*argv, "--num-clusters", "36"]) == 0
    assert list(kept(output)) == ["cluster_alignment_k36"]
    assert run([*argv, "--num-clusters", "3"]) == 0
    assert run([*argv, "--num-clusters", "2"]) == 0
    names = ["cluster_alignment_k36", "cluster_alignment", "cluster_alignment_k2"]
    assert list(kept(output)) == names
    assert kept(output)["cluster_alignment_k2"] <= 2 / 3  # two clusters stand for two classes


def test_the_seed_arrives(make_folder, weights, monkeypatch):
    received = []

    def record(self, **arguments):
        received.append(arguments)
        return 0.5

    monkeypatch.setattr(EmbeddedSplits, "cluster_alignment", record)
    argv = ["clusters", str(weights), *FLAGS, "--data", str(make_folder())]
    assert run([*argv, "--seed", "7", "--num-clusters", "5"]) == 0
    assert received == [{"num_clusters": 5, "seed": 7}]


def test_a_run_knows_its_data_and_keeps_the_number(make_folder, tmp_path):
    data, output = make_folder(), tmp_path / "run"
    train = ["--teacher", "pixels", *FLAGS, "--data", str(data), "--output", str(output)]
    assert run([*train, "--batch-size", "8", "--epochs", "1"]) == 0
    before = kept(output)
    found = distill.evaluate_clusters(output, num_clusters=4)
    assert list(found) == ["cluster_alignment_k4"]
    assert kept(output) == {**before, **found}
