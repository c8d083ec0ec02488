"""Pre-training from the command line, on folders of a few small images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import distill
from distill.cli.main import run
from distill.models.weights import read_state_dict

TINY = ["pretrain", "--width", "0.125", "--image-size", "32", "--num-workers", "0"]
TINY += ["--hidden-dim", "16", "--projection-dim", "8", "--batch-size", "8"]


def short(data: Path, output: Path, *flags: str) -> list[str]:
    return [*TINY, "--data", str(data), "--output", str(output), *flags]


def log_lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["simclr", "c-simclr", "byol", "c-byol"])
def test_every_method_leaves_what_was_promised(make_folder, tmp_path, capsys, method):
    output = tmp_path / "run"
    flags = ["--method", method, "--epochs", "2", "--log-every", "1"]
    assert run(short(make_folder(), output, *flags)) == 0
    names = {path.name for path in output.iterdir()}
    assert {"backbone.safetensors", "heads.safetensors", "config.yaml", "log.jsonl"} <= names
    metrics = json.loads((output / "metrics.json").read_text())
    measured = {"nn_accuracy", "cluster_alignment"}
    assert measured | {f"untrained_{name}" for name in measured} <= set(metrics)
    lines = [line for line in log_lines(output) if "learning_rate" in line]
    assert all(np.isfinite(line["loss"]) for line in lines)
    informed = {
        "simclr": {"i_y_zx", "i_x_zy"},
        "c-simclr": {"i_xzx_y", "i_yzy_x", "i_y_zx", "i_x_zy", "h_e_zx_x", "h_b_zx_y", "beta"},
        "byol": {"byol_loss", "target_momentum"},
        "c-byol": {"i_xzx_y", "i_y_zx", "h_e_zx_x", "h_b_zx_y", "byol_loss", "target_momentum"},
    }
    assert informed[method] <= set(lines[-1])
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["command"] == "pretrain"
    assert config.get("beta") == (1.0 if method.startswith("c-") else None)
    assert "nn_accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [
        "--optimizer lars --weight-decay 1e-6",
        "--optimizer sgd --clip-grad-norm 1",
        "--precision bf16 --stem imagenet --image-size 64",
        "--augmentation glyph",
        "--beta 0.5 --beta-schedule linear --beta-epochs 1",
        "--beta-schedule cosine --backward-encoder same-view",
        "--accumulate 2",
        "--arch resnet50",
    ],
)
def test_options_that_change_the_path(make_folder, tmp_path, capsys, flags):
    output = tmp_path / "run"
    assert run(short(make_folder(), output, "--epochs", "2", *flags.split())) == 0
    assert "nn_accuracy" in json.loads((output / "metrics.json").read_text())
    told = (
        "negatives and batch statistics come from 4 images, not from 8" in capsys.readouterr().out
    )
    assert told == ("--accumulate" in flags)


def test_beta_rises_as_asked(make_folder, tmp_path):
    flags = "--method c-simclr --epochs 4 --beta 2 --beta-schedule linear --beta-epochs 2"
    assert run(short(make_folder(), tmp_path / "a", *flags.split(), "--log-every", "1")) == 0
    betas = [line["beta"] for line in log_lines(tmp_path / "a") if "learning_rate" in line]
    assert betas[0] == 0
    assert betas == sorted(betas)
    assert set(betas[len(betas) // 2 :]) == {2.0}


@pytest.mark.parametrize("batches", [3, 4])  # inside the first epoch, at its end
@pytest.mark.parametrize("flags", ["--method c-byol", "--method c-simclr --optimizer lars"])
def test_a_stopped_run_ends_as_if_it_had_not_been(
    make_folder, tmp_path, monkeypatch, stop_after, capsys, batches, flags
):
    data, flags = make_folder(), [*flags.split(), "--epochs", "2", "--log-every", "1"]
    assert run(short(data, tmp_path / "whole", *flags)) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, batches)
        assert run(short(data, tmp_path / "parts", *flags)) == 143
    go_on = f"distill pretrain --output {tmp_path / 'parts'} --resume"
    assert f"go on with: {go_on}" in capsys.readouterr().out
    assert run(go_on.split()[1:]) == 0
    for name in ("backbone.safetensors", "heads.safetensors"):
        whole, parts = (read_state_dict(tmp_path / n / name) for n in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    logs = [
        [line for line in log_lines(tmp_path / n) if "learning_rate" in line]
        for n in ("whole", "parts")
    ]
    for line in (*logs[0], *logs[1]):
        del line["images_per_second"], line["data_wait"]
    assert logs[0] == logs[1]


def test_the_result_teaches_and_is_measured_as_it_is(make_folder, tmp_path, capsys):
    data, teacher = make_folder(), tmp_path / "teacher"
    assert run(short(data, teacher, "--epochs", "1")) == 0
    trained = json.loads((teacher / "metrics.json").read_text())
    assert run(["nn", str(teacher)]) == 0
    assert json.loads((teacher / "metrics.json").read_text()) == trained
    student = ["--student", "timm:test_resnet", "--image-size", "32", "--num-workers", "0"]
    student += ["--data", str(data), "--epochs", "1", "--batch-size", "8"]
    assert run(["--teacher", str(teacher), *student, "--output", str(tmp_path / "student")]) == 0
    metrics = json.loads((tmp_path / "student" / "metrics.json").read_text())
    assert metrics["teacher_nn_accuracy"] == trained["nn_accuracy"]
    assert distill.load_student(teacher).embedding_dim == 64


def test_the_printed_configuration_is_a_recipe(make_folder, tmp_path, capsys):
    output = tmp_path / "run"
    assert run(short(make_folder(), output, "--epochs", "4", "--print-config")) == 0
    printed = capsys.readouterr().out
    assert not output.exists()
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(printed)
    assert run(["pretrain", "--recipe", str(recipe), "--print-config"]) == 0
    again = yaml.safe_load(capsys.readouterr().out)
    assert again == {**yaml.safe_load(printed), "recipe": str(recipe)}


def test_a_run_is_continued_by_its_own_command(make_folder, tmp_path, capsys):
    assert run(short(make_folder(), tmp_path / "run", "--epochs", "1")) == 0
    capsys.readouterr()
    assert run(["--output", str(tmp_path / "run"), "--resume"]) == 2
    assert "a run of `distill pretrain`" in capsys.readouterr().err
    assert run(["pretrain", "--output", str(tmp_path / "run"), "--resume", "--beta", "9"]) == 2
    assert "--beta is 1.0 in the run and 9.0 was asked for" in capsys.readouterr().err


@pytest.mark.ddp
def test_torchrun_shares_a_run_and_continues_it(make_folder, tmp_path):
    """Two processes on one CPU: the log and the weights of one process, said once."""
    data, flags = make_folder(), ["--method", "simclr", "--epochs", "1", "--precision", "fp32"]
    assert run(short(data, tmp_path / "one", *flags)) == 0
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
    ]
    command += ["-m", "distill", *short(data, tmp_path / "two", *flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("everything is in") == 1
    assert "batches of 8 images over 2 processes" in done.stdout
    one, two = (log_lines(tmp_path / name)[-1] for name in ("one", "two"))
    assert one["step"] == two["step"]
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)  # Adam's steps magnify rounding
    assert "nn_accuracy" in json.loads((tmp_path / "two" / "metrics.json").read_text())
    # What two processes began, one goes on with.
    assert run(["pretrain", "--output", str(tmp_path / "two"), "--resume"]) == 0
