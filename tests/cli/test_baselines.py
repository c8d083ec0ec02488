"""The baselines from the command line, on folders of a few small images."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import distill
from distill.cli.main import run
from distill.losses import METHODS
from distill.models.weights import read_state_dict
from distill.training.checkpoints import load_newest
from students.registry import build_student

STUDENT = ["--student", "timm:test_resnet", "--image-size", "32", "--num-workers", "0"]
BASELINES = [name for name, _ in METHODS.items() if name != "compress"]


def short(method: str, data: Path, output: Path, *flags: str) -> list[str]:
    teacher = [] if method == "supervised" else ["--teacher", "pixels"]
    where = ["--data", str(data), "--output", str(output), "--batch-size", "8"]
    return ["--method", method, *teacher, *STUDENT, *where, *flags]


def metrics_of(output: Path) -> dict:
    return json.loads((output / "metrics.json").read_text())


def loss_lines(output: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "learning_rate" in line]


@pytest.mark.parametrize("method", BASELINES)
def test_every_method_trains_a_student_without_its_heads(make_folder, tmp_path, capsys, method):
    output = tmp_path / "run"
    assert run(short(method, make_folder(), output, "--epochs", "1", "--nn-every", "0")) == 0
    assert f"{method}: " in capsys.readouterr().out
    assert yaml.safe_load((output / "config.yaml").read_text())["method"] == method
    metrics = metrics_of(output)
    assert 0 <= metrics["nn_accuracy"] <= 1
    assert ("teacher_nn_accuracy" in metrics) == (method != "supervised")
    plain = build_student("timm:test_resnet", image_size=32).backbone.state_dict()
    assert read_state_dict(output / "student.safetensors").keys() == plain.keys()
    assert distill.load_student(output).embedding_dim == 96


@pytest.mark.parametrize("method", ["crd", "seed", "clusterfit", "simreg"])
def test_a_stopped_run_ends_as_if_it_had_not_been(
    make_folder, tmp_path, monkeypatch, stop_after, method
):
    data = make_folder(num_train=14)
    flags = ["--epochs", "2", "--log-every", "1", "--nn-every", "0"]
    assert run(short(method, data, tmp_path / "whole", *flags)) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert run(short(method, data, tmp_path / "parts", *flags)) == 143

    def not_again(*_: object) -> None:
        raise AssertionError("the clusters are in the checkpoint")

    monkeypatch.setattr("distill.losses.clusterfit._clusters", not_again)
    assert run(["--output", str(tmp_path / "parts"), "--resume"]) == 0
    whole, parts = (
        read_state_dict(tmp_path / n / "student.safetensors") for n in ("whole", "parts")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert loss_lines(tmp_path / "whole") == loss_lines(tmp_path / "parts")
    states = [load_newest(tmp_path / n / "checkpoints").state["objective"]["loss"]
              for n in ("whole", "parts")]  # fmt: skip
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_clusterfit_s_classes_are_clusters_of_what_the_teacher_sees(make_folder, tmp_path):
    output = tmp_path / "run"
    flags = ["--epochs", "1", "--num-clusters", "3", "--holdout", "0.1", "--nn-every", "0"]
    assert run(short("clusterfit", make_folder(), output, *flags)) == 0
    cluster = load_newest(output / "checkpoints").state["objective"]["loss"]["cluster"]
    assert (cluster < 0).sum() == 4  # of 36 images, held out
    colors = cluster.view(3, 12)  # the classes differ in hue
    seen = [set(row[row >= 0].tolist()) for row in colors]
    assert all(len(one) == 1 for one in seen)
    assert set().union(*seen) == {0, 1, 2}


def test_a_supervised_student_learns_the_labels(make_folder, tmp_path):
    data, output = make_folder(num_train=40), tmp_path / "run"
    flags = ["--epochs", "6", "--nn-every", "0", "--log-every", "1", "--precision", "fp32"]
    assert run(short("supervised", data, output, *flags)) == 0
    losses = [loss for _, loss in loss_lines(output)]
    assert sum(losses[-15:]) < 0.75 * sum(losses[:15])  # epochs of 15 steps


def test_a_teacher_beside_the_supervised_student_is_measured(make_folder, tmp_path, capsys):
    output = tmp_path / "run"
    flags = ["--teacher", "pixels", "--epochs", "1", "--nn-every", "0"]
    assert run(short("supervised", make_folder(), output, *flags)) == 0
    assert metrics_of(output)["teacher_nn_accuracy"] == 1


def test_a_teacher_that_sees_the_student_s_crop(make_folder, tmp_path):
    flags = ["--teacher-view", "student", "--epochs", "1", "--nn-every", "0"]
    assert run(short("rkd", make_folder(), tmp_path / "run", *flags)) == 0


def test_a_recipe_selects_the_method_and_flags_override(make_folder, tmp_path, capsys):
    data = str(make_folder())
    flags = ["--data", data, "--output", str(tmp_path / "run"), "--print-config"]
    assert run(["--recipe", "crd", "--teacher", "pixels", *STUDENT, "--head-dim", "7", *flags]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["method"], config["head_dim"], config["num_negatives"]) == ("crd", 7, 16384)
    assert config["optimizer"] == "sgd"
    assert "queue_size" not in config  # of other methods


def test_the_default_run_directory_names_the_method(make_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ["--data", str(make_folder()), "--print-config"]
    assert run(["--method", "sp", "--teacher", "pixels", *STUDENT, *data]) == 0
    output = yaml.safe_load(capsys.readouterr().out)["output"]
    assert output == "runs/sp-pixels-timm_test_resnet-photos"
    assert run(["--method", "supervised", *STUDENT, *data]) == 0
    output = yaml.safe_load(capsys.readouterr().out)["output"]
    assert output == "runs/supervised-timm_test_resnet-photos"


def test_methods_are_listed(capsys):
    assert run(["list", "methods"]) == 0
    printed = capsys.readouterr().out
    for name, method in METHODS.items():
        assert any(name in line and method.summary in line for line in printed.splitlines())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--method simregg", "unknown method 'simregg': did you mean 'simreg'"),
        ("--method crd --variant two-queue", "--variant goes with --method compress, not with crd"),
        ("--num-clusters 3", "--num-clusters goes with --method clusterfit, not"),
        ("--method clusterfit --teacher-view student", "--teacher-view student does not go with"),
        ("--method clusterfit --num-clusters 99", "--num-clusters is 99, it must be at most"),
    ],
)
def test_mistakes_are_one_sentence(make_folder, tmp_path, capsys, flags, message):
    data = ["--data", str(make_folder()), "--output", str(tmp_path / "run")]
    assert run(["--teacher", "pixels", *STUDENT, *data, *flags.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_labels_that_the_supervised_student_needs(make_folder, tmp_path, capsys):
    unlabeled = make_folder() / "train" / "class0"
    assert run(short("supervised", unlabeled, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert "--method supervised learns from labels, and 11 of the 11 images" in error
    assert run(["--method", "reg", *STUDENT, "--data", str(unlabeled)]) == 2
    assert "--teacher is missing" in capsys.readouterr().err
