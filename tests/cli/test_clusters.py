"""Cluster alignment from the command line, on folders of a few small images."""

import json
from pathlib import Path

import pytest
import torch

import distill
from distill.cli.main import run
from distill.evaluation import clusters
from distill.evaluation.clusters import align_clusters
from distill.evaluation.kmeans import Clustering, Minibatch
from students.registry import build_student

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


NAMES = ["cluster_alignment", "cluster_nmi", "cluster_ari", "cluster_purity"]


def test_the_numbers_are_printed_kept_and_the_same_from_python(
    make_folder, weights, tmp_path, capsys
):
    data, output = make_folder(), tmp_path / "measured"
    argv = ["clusters", str(weights), *FLAGS, "--data", str(data), "--output", str(output)]
    assert run(argv) == 0
    measured = kept(output)
    assert list(measured) == NAMES
    assert 1 / 3 <= measured["cluster_alignment"] <= 1
    assert f"cluster_alignment  {measured['cluster_alignment']:.4f}" in capsys.readouterr().out
    found = distill.evaluate_clusters(weights, data=str(data), num_workers=0, **NETWORK)
    assert found == measured


def test_names_say_what_differs_from_the_standard_protocol(make_folder, weights, tmp_path):
    data, output = make_folder(), tmp_path / "measured"
    argv = ["clusters", str(weights), *FLAGS, "--data", str(data), "--output", str(output)]
    assert run([*argv, "--num-clusters", "3"]) == 0
    assert list(kept(output)) == NAMES
    assert run([*argv, "--num-clusters", "36", "--matching", "count", "--spherical"]) == 0
    more = list(kept(output))[len(NAMES) :]
    assert more == [
        "cluster_alignment_k36_count_spherical",
        *(f"{n}_k36_spherical" for n in NAMES[1:]),
    ]
    assert run([*argv, "--num-clusters", "2", "--minibatch", "20"]) == 0
    assert kept(output)["cluster_alignment_k2_minibatch"] <= 2 / 3  # two clusters, two classes
    assert run([*argv, "--restarts", "1", "--iterations", "5"]) == 0
    assert list(kept(output))[-len(NAMES) :] == [f"{name}_r1_i5" for name in NAMES]


def test_the_flags_arrive(make_folder, weights, monkeypatch):
    received = []

    def record(*features_and_labels, **arguments):
        received.append(arguments)
        return align_clusters(*features_and_labels)

    monkeypatch.setattr(clusters, "align_clusters", record)
    argv = ["clusters", str(weights), *FLAGS, "--data", str(make_folder())]
    flags = "--seed 7 --num-clusters 5 --restarts 2 --iterations 3 --spherical --minibatch 9"
    assert run([*argv, *flags.split(), "--matching", "count"]) == 0
    assert run(argv) == 0
    how = Clustering(5, 7, num_iterations=3, restarts=2, spherical=True, minibatch=Minibatch(9))
    assert received == [
        {"clustering": how, "matching": "count"},
        {"clustering": Clustering(), "matching": "purity"},
    ]


def test_what_every_cluster_holds_and_what_a_reader_should_know(
    make_folder, weights, tmp_path, capsys
):
    argv = ["clusters", str(weights), *FLAGS, "--data", str(make_folder())]
    assert run([*argv, "--num-clusters", "4", "--per-cluster"]) == 0
    lines = capsys.readouterr().out.splitlines()
    top = next(i for i, line in enumerate(lines) if line.startswith("cluster  images  stands for"))
    rows = [line.split() for line in lines[top + 1 : top + 5]]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert sum(int(row[1]) for row in rows) == 36
    stands_for = [row[2] for row in rows]
    assert sorted(stands_for) == ["-", "class0", "class1", "class2"]
    assert rows[stands_for.index("-")][3] == "0.0000"
    assert lines[-1].startswith("1 of 4 clusters stand for no class, because there are more")


def test_a_run_knows_its_data_and_keeps_the_number(make_folder, tmp_path):
    data, output = make_folder(), tmp_path / "run"
    train = ["--teacher", "pixels", *FLAGS, "--data", str(data), "--output", str(output)]
    assert run([*train, "--batch-size", "8", "--epochs", "1"]) == 0
    before = kept(output)
    found = distill.evaluate_clusters(output, num_clusters=4)
    assert list(found) == [f"{name}_k4" for name in NAMES]
    assert kept(output) == {**before, **found}
