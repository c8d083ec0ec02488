"""The main job from the command line, on folders of a few small images."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import distill
from distill.cli.main import run
from distill.models.weights import read_state_dict
from distill.training.checkpoints import FORMAT, checkpoints

TINY = ["--teacher", "pixels", "--student", "timm:test_resnet"]
TINY += ["--image-size", "32", "--num-workers", "0"]


def short(data: Path, output: Path, *flags: str) -> list[str]:
    return [*TINY, "--data", str(data), "--output", str(output), "--batch-size", "8", *flags]


def log_lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_the_run_directory_holds_what_was_promised(make_folder, tmp_path, capsys):
    data, output = make_folder(), tmp_path / "run"
    assert run(short(data, output, "--epochs", "3", "--log-every", "1")) == 0
    printed = capsys.readouterr().out
    assert sorted(p.name for p in output.iterdir() if not p.name.startswith(".")) == [
        "checkpoints",
        "config.yaml",
        "log.jsonl",
        "metrics.json",
        "student.safetensors",
        "tensorboard",
    ]
    metrics = json.loads((output / "metrics.json").read_text())
    for name in ("nn_accuracy", "untrained_nn_accuracy", "teacher_nn_accuracy"):
        assert 0 <= metrics[name] <= 1
        assert name in printed
    assert metrics["teacher_nn_accuracy"] == 1  # the classes differ in hue
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert (config["epochs"], config["batch_size"], config["queue_init"]) == (3, 8, "empty")
    assert config["student_init"] == "random"  # it has BatchNorm
    assert (
        config["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in torch.__version__
    )


def test_the_log_has_a_line_a_step_and_starts_by_filling(make_folder, tmp_path):
    data, output = make_folder(), tmp_path / "run"
    flags = ["--epochs", "2", "--log-every", "1", "--holdout", "0.1", "--anchors", "queue"]
    assert run(short(data, output, *flags)) == 0
    lines = log_lines(output)
    assert lines[0]["event"] == "filling"
    assert lines[0]["step"] == 0
    steps = [line["step"] for line in lines if "learning_rate" in line]
    metrics = json.loads((output / "metrics.json").read_text())
    assert steps == list(range(1, metrics["num_steps"] + 1))
    assert all(np.isfinite(line["loss"]) for line in lines if "learning_rate" in line)
    epochs = [line for line in lines if line.get("event") == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2]
    assert "holdout_nn_accuracy" in epochs[-1]


@pytest.mark.parametrize("measure", ["trained", "none"])
def test_only_what_is_asked_for_is_measured(make_folder, tmp_path, measure):
    output = tmp_path / "run"
    assert run(short(make_folder(), output, "--epochs", "1", "--measure", measure)) == 0
    metrics = json.loads((output / "metrics.json").read_text())
    assert not [name for name in metrics if name.startswith(("teacher_", "untrained_"))]
    assert ("nn_accuracy" in metrics) == (measure == "trained")


def test_the_student_learns_what_the_teacher_sees(make_folder, tmp_path):
    data, output = make_folder(num_train=40), tmp_path / "run"
    assert run(short(data, output, "--epochs", "8", "--holdout", "0")) == 0
    losses = [line["loss"] for line in log_lines(output) if line.get("event") == "epoch"]
    assert losses[-1] < 0.7 * losses[0]
    assert json.loads((output / "metrics.json").read_text())["nn_accuracy"] > 0.9


def test_nn_prints_the_same_number_again(make_folder, tmp_path, capsys):
    data, output = make_folder(num_val=9), tmp_path / "run"
    assert run(short(data, output, "--epochs", "1")) == 0
    trained = json.loads((output / "metrics.json").read_text())["nn_accuracy"]
    capsys.readouterr()
    assert run(["nn", str(output), "--data", str(data)]) == 0
    assert f"nn_accuracy  {trained:.4f}" in capsys.readouterr().out
    assert distill.evaluate("nn", output).metrics == {
        "nn_accuracy": trained
    }  # the run knows its data
    assert run(["nn", str(output), "--k", "5", "--vote", "weighted"]) == 0
    assert "nn_accuracy_k5_weighted" in json.loads((output / "metrics.json").read_text())


@pytest.mark.parametrize("variant", ["two-queue-momentum", "two-queue", "one-queue"])
@pytest.mark.parametrize("init", ["empty", "random", "prefill"])
def test_every_variant_and_queue_start(make_folder, tmp_path, variant, init):
    data, output = make_folder(), tmp_path / "run"
    flags = ["--variant", variant, "--queue-init", init, "--queue-size", "20", "--epochs", "2"]
    assert run(short(data, output, *flags, "--log-every", "1")) == 0
    lines = log_lines(output)
    assert (lines[0].get("event") == "filling") == (init == "empty")
    if init != "empty":
        assert lines[0]["num_anchors"] == 20


@pytest.mark.parametrize(
    "flags",
    [
        "--teacher-view student",
        "--precision bf16",
        "--optimizer sgd --clip-grad-norm 1",
        "--queue-dtype bf16",
        "--augmentation none",
        "--schedule step --milestones 1",
        "--variant two-queue --projection-dim 16",
        "--variant two-queue --projection-dim 0 --precision fp32",
        "--teacher-mean keep",
        "--regression-share 0",
        "--regression-share 1 --teacher-view student --optimizer sgd",
        "--variant two-queue --teacher-mean subtract",
        "--student-init scaled",
        "--student-crops 2 --compression-beta 0.1 --kappa-b 5",
        "--student-crops 2 --teacher-view student --variant two-queue",
        "--anchors dataset --variant two-queue --queue-init prefill",
    ],
)
def test_options_that_change_the_path(make_folder, tmp_path, flags):
    output = tmp_path / "run"
    assert run(short(make_folder(), output, "--epochs", "2", *flags.split())) == 0
    assert "nn_accuracy" in json.loads((output / "metrics.json").read_text())


def test_unlabeled_images_are_enough(make_folder, tmp_path, capsys):
    folder = make_folder() / "train" / "class0"
    output = tmp_path / "run"
    assert run(short(folder, output, "--epochs", "1")) == 0
    printed = capsys.readouterr().out
    assert "nearest neighbor and cluster alignment are skipped" in printed
    assert "nn_accuracy" not in json.loads((output / "metrics.json").read_text())
    assert (output / "student.safetensors").exists()


def test_without_data_the_digits_are_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DISTILL_DATA", raising=False)
    assert run([*TINY, "--output", str(tmp_path / "run"), "--epochs", "1"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "no --data: showing the pipeline on scikit-learn's 1,797 digits"
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["teacher_nn_accuracy"] > 0.95
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"] == "digits"


def test_the_environment_names_data(make_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DISTILL_DATA", str(make_folder()))
    assert (
        run([*TINY, "--output", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "8"]) == 0
    )
    assert "using DISTILL_DATA" in capsys.readouterr().out


def test_printed_configuration_is_a_recipe(make_folder, tmp_path, capsys):
    data, output = make_folder(), tmp_path / "run"
    assert run(short(data, output, "--epochs", "4", "--print-config")) == 0
    printed = capsys.readouterr().out
    assert not output.exists()
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(printed)
    assert run(["--recipe", str(recipe), "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {
        **yaml.safe_load(printed),
        "recipe": str(recipe),
    }


@pytest.mark.parametrize(
    "options",
    [
        ["--variant", "two-queue-momentum"],
        ["--variant", "one-queue"],
        ["--variant", "one-queue", "--anchors", "queue"],
        ["--student-crops", "2", "--variant", "two-queue-momentum"],
    ],
)
@pytest.mark.parametrize("batches", [3, 5, 7])  # inside the first epoch, at its end, in the second
def test_a_stopped_run_ends_as_if_it_had_not_been(
    make_folder, tmp_path, monkeypatch, stop_after, options, batches
):
    data = make_folder(num_train=14)
    flags = ["--epochs", "3", "--holdout", "0.05", *options, "--log-every", "1"]
    assert run(short(data, tmp_path / "whole", *flags)) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, batches)
        assert run(short(data, tmp_path / "parts", *flags)) == 143
    assert not (tmp_path / "parts" / "student.safetensors").exists()
    assert run(["--output", str(tmp_path / "parts"), "--resume"]) == 0
    whole, parts = (
        read_state_dict(tmp_path / n / "student.safetensors") for n in ("whole", "parts")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    logs = [[(line["step"], line.get("loss")) for line in log_lines(tmp_path / n)
             if "learning_rate" in line] for n in ("whole", "parts")]  # fmt: skip
    assert logs[0] == logs[1]
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("whole", "parts")]
    for values in metrics:
        del values["train_seconds"]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("variant", ["two-queue-momentum", "one-queue"])
def test_a_run_with_all_images_as_anchors_goes_on_without_having_saved_the_teachers(
    make_folder, tmp_path, stop_after, monkeypatch, variant
):
    data, flags = make_folder(), ["--epochs", "2", "--variant", variant, "--anchors", "dataset"]
    assert run(short(data, tmp_path / "whole", *flags)) == 0
    first = log_lines(tmp_path / "whole")[0]
    assert (first.get("event"), first["num_anchors"]) == (
        (None, 34) if variant == "one-queue" else ("filling", 8)
    )
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run(short(data, tmp_path / "parts", *flags)) == 143
    banks = list((tmp_path / "parts" / "checkpoints").glob("*.queue-*"))
    assert len(banks) == (variant != "one-queue")
    assert all(path.stat().st_size < 34 * 192 * 4 for path in banks)  # 96 wide, not 96 + 192
    assert run(["--output", str(tmp_path / "parts"), "--resume"]) == 0
    whole, parts = (
        read_state_dict(tmp_path / n / "student.safetensors") for n in ("whole", "parts")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_ctrl_c_ends_cleanly_with_a_checkpoint(make_folder, tmp_path):
    data, output = make_folder(), tmp_path / "run"
    command = [sys.executable, "-m", "distill", *short(data, output, "--epochs", "2000")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(output.glob("checkpoints/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGINT)
    printed, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert f"go on with: distill --output {output} --resume" in printed
    assert "Traceback" not in errors
    assert list(output.glob("checkpoints/*.safetensors"))


def test_a_checkpoint_of_another_release_is_refused_and_nothing_is_written(
    make_folder, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("distill.training.checkpoints.FORMAT", FORMAT - 1)
        assert run(short(make_folder(), output, "--epochs", "1")) == 0
    config = output / "config.yaml"
    text = config.read_text() + "# as the other release wrote it\n"
    config.write_text(text)
    assert run(["--output", str(output), "--resume"]) == 2
    said = capsys.readouterr().err
    assert f"has format {FORMAT - 1}, and this version of distill reads format {FORMAT}" in said
    assert said.count("--output") == 1
    assert config.read_text() == text


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(
    make_folder, tmp_path, monkeypatch, capsys
):
    from distill.losses.compress import CompRess

    data, output = make_folder(), tmp_path / "run"
    forward, calls = CompRess.forward, []

    def diverge(self, *args, **more):
        calls.append(1)
        loss = forward(self, *args, **more)
        return loss * float("nan") if len(calls) == 8 else loss

    monkeypatch.setattr(CompRess, "forward", diverge)
    assert run(short(data, output, "--epochs", "4", "--log-every", "1")) == 1
    error = capsys.readouterr().err
    assert "the loss is nan at step 8 (epoch 2)" in error
    assert len(checkpoints(output / "checkpoints")) == 1
    monkeypatch.undo()
    assert run(["--output", str(output), "--resume"]) == 0
    # What was logged after the checkpoint is logged once.
    steps = [line["step"] for line in log_lines(output) if "learning_rate" in line]
    assert steps == list(range(1, 21))


def test_weights_that_are_not_finite_are_never_saved(make_folder, tmp_path, monkeypatch, capsys):
    from distill.training.distillation import Distillation

    output, after_step, calls = tmp_path / "run", Distillation.after_step, []

    def overflow(self, *, stepped):
        after_step(self, stepped=stepped)
        calls.append(1)
        if len(calls) == 10:  # the second epoch's last
            next(self.parameters()).data.fill_(float("inf"))

    monkeypatch.setattr(Distillation, "after_step", overflow)
    flags = ["--epochs", "2", "--holdout", "0"]
    assert run(short(make_folder(), output, *flags)) == 1
    assert "weights are not finite after step 10" in capsys.readouterr().err
    assert len(checkpoints(output / "checkpoints")) == 1


@pytest.mark.parametrize(("most", "fits"), [("3", True), ("2", False)])
def test_skipped_images_are_bounded(make_folder, tmp_path, capsys, most, fits):
    data, output = make_folder(), tmp_path / "run"
    for number, split in enumerate(["train", "train", "val"]):
        (data / split / "class1" / f"00{number}.png").write_bytes(b"no image")
    flags = ["--on-bad-image", "skip", "--max-bad-images", most, "--epochs", "1"]
    assert run(short(data, output, *flags)) == (0 if fits else 2)
    error = capsys.readouterr().err
    if not fits:
        assert "3 images cannot be read, the last of them" in error
        assert "at most 2 may be skipped" in error
        assert not output.exists()


def test_bad_images_fail_or_are_skipped(make_folder, tmp_path, capsys):
    data = make_folder()
    broken = data / "train" / "class1" / "000.png"
    broken.write_bytes(broken.read_bytes()[:60])
    output = tmp_path / "run"
    assert run(short(data, output, "--epochs", "1")) == 2
    error = capsys.readouterr().err
    assert "000.png" in error
    assert "--on-bad-image skip" in error
    assert not output.exists()
    assert run(short(data, output, "--epochs", "1", "--on-bad-image", "skip")) == 0
    assert json.loads((output / "metrics.json").read_text())["num_skipped_images"] == 1
    assert "skipped" in capsys.readouterr().out


def test_an_image_that_breaks_during_training_is_named(make_folder, tmp_path, monkeypatch, capsys):
    data = make_folder()
    monkeypatch.setattr("distill.data.sources.scan_is_cheap", lambda images: False)
    (data / "train" / "class1" / "000.png").write_bytes(b"not an image")
    assert run(short(data, tmp_path / "a", "--epochs", "1")) == 2
    assert "000.png cannot be read as an image" in capsys.readouterr().err
    assert run(short(data, tmp_path / "b", "--epochs", "2", "--on-bad-image", "skip")) == 0
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["num_skipped_images"] == 1


def test_a_run_that_goes_on_remembers_what_it_skipped(
    make_folder, tmp_path, monkeypatch, stop_after, capsys
):
    data, output = make_folder(), tmp_path / "run"
    monkeypatch.setattr("distill.data.sources.scan_is_cheap", lambda images: False)
    image = data / "train" / "class1" / "000.png"
    whole = image.read_bytes()
    image.write_bytes(b"not an image")
    flags = ["--epochs", "2", "--on-bad-image", "skip", "--teacher-view", "student"]
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        assert run(short(data, output, *flags, "--max-bad-images", "1")) == 143
    assert capsys.readouterr().out.count("000.png: cannot be read") == 1
    image.write_bytes(whole)
    assert run(["--output", str(output), "--resume"]) == 0
    assert json.loads((output / "metrics.json").read_text())["num_skipped_images"] == 1
    assert "cannot be read" not in capsys.readouterr().out


def test_python_and_the_command_line_give_the_same(make_folder, tmp_path):
    data = make_folder()
    assert run(short(data, tmp_path / "a", "--epochs", "1")) == 0
    result = distill.train(
        teacher="pixels",
        student="timm:test_resnet",
        data=data,
        image_size=32,
        num_workers=0,
        batch_size=8,
        epochs=1,
        output=tmp_path / "b",
    )
    assert result.stopped_by is None
    a, b = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in "ab")
    assert {**a, "train_seconds": 0} == {**b, "train_seconds": 0}
    student = distill.load_student(result.output)
    pixels = np.asarray(Image.open(next((data / "val").rglob("*.png"))).resize((32, 32)))
    assert student(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]).shape == (1, 96)
