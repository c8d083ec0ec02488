"""Comparisons from the command line, with real runs of seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import distill
from distill.cli.main import run
from distill.comparison import runner
from distill.comparison.worker import perform
from distill.evaluation.base import EvaluationOptions, open_evaluation
from distill.evaluation.standard import standard_metrics
from distill.models.weights import read_state_dict

COMMON = {"image_size": 16, "batch_size": 128, "num_workers": 0, "precision": "fp32"}
FIRST = "one-queue--timm-test_resnet--pixels--seed0"


@pytest.fixture
def write_grid(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a grid of two methods, two seeds and a tiny student."""

    def write(**changes: Any) -> Path:
        content = {
            "data": "digits",
            "common": {**COMMON, "epochs": 3},
            "teachers": ["pixels"],
            "students": ["timm:test_resnet"],
            "seeds": [0, 1],
            "methods": {"one queue": {}, "two queues": {"variant": "two-queue-momentum"}},
            **changes,
        }
        file = tmp_path / "grid.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return write


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make trials here: the start of Python and PyTorch takes longer than the runs."""
    monkeypatch.setattr(runner, "launch", lambda request, stop, slot: perform(request))


def start_until_checkpoint(grid: Path, output: Path) -> subprocess.Popen[str]:
    """Start a comparison and return when its first run has a checkpoint."""
    command = [sys.executable, "-m", "distill", "compare", str(grid), "--output", str(output)]
    # As many threads as here: sums of other blocks differ in their last digits.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, text=True, env={**os.environ, **paths, **threads}, **pipes)
    end = time.monotonic() + 240
    while not list(output.glob(f"runs/{FIRST}/checkpoints/step-*.safetensors")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)
    return process


def test_a_comparison_that_is_killed_goes_on_and_the_teacher_sees_each_image_once(
    write_grid, tmp_path, monkeypatch, capfd, in_this_process
):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    grid, output = write_grid(), tmp_path / "out"
    process = start_until_checkpoint(grid, output)
    process.kill()  # kill -9: its own child is not told by it, and ends nevertheless
    before = process.communicate()[0]  # until the last process that prints is gone
    assert process.returncode == -signal.SIGKILL
    assert json.loads((output / "trials" / f"{FIRST}.json").read_text())["state"] == "started"
    assert run(["compare", str(grid), "--output", str(output), "--resume"]) == 0
    printed = capfd.readouterr().out
    assert "continuing after step" in printed
    # Validation images are of use to the one run of each seed that measures the teacher.
    for split, number in (("train", "1,437"), ("val", "360")):
        assert (before + printed).count(f"teacher, digits/{split}: 0 of {number}") == 1
    kept = json.loads((output / "comparison.json").read_text())
    assert [trial["state"] for trial in kept["trials"]] == ["done"] * 4
    for row in kept["rows"][:2]:
        mine = [trial for trial in kept["trials"] if trial["method"] == row["name"]]
        for measure in ("linear_accuracy", "nn_accuracy", "cluster_alignment"):
            values = [trial["metrics"][measure] for trial in mine]
            assert row["values"][measure]["mean"] == pytest.approx(sum(values) / 2)
            assert row["values"][measure]["std"] == pytest.approx(
                abs(values[0] - values[1]) / 2**0.5
            )
            assert min(values) > 0.2
    assert "Held-out training images" in (output / "comparison.html").read_text()
    assert not list(output.glob("runs/*/checkpoints"))
    # The run that was killed ended as one of `distill train` that was not.
    whole = distill.train(
        teacher="pixels", student="timm:test_resnet", data="digits", seed=0, epochs=3,
        output=tmp_path / "whole", **COMMON,
    )  # fmt: skip
    ours, theirs = (
        read_state_dict(path / "student.safetensors")
        for path in (output / "runs" / FIRST, whole.output)
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    # Numbers of one pass for all three measures are those that training would have made.
    measured = kept["trials"][1]
    subject = open_evaluation(output / "runs" / measured["name"], EvaluationOptions())
    expected = standard_metrics(*subject.embedder.embed_both(subject.network, what="student"))
    assert {name: measured["metrics"][name] for name in expected} == expected
    assert "teacher_nn_accuracy" not in measured["metrics"]
    assert run(["compare", str(output), "--table"]) == 0
    table = capfd.readouterr().out
    assert "timm:test_resnet, taught by pixels" in table
    assert "untrained student" in table


def test_a_signal_ends_a_comparison_with_a_checkpoint(write_grid, tmp_path):
    grid, output = write_grid(common={**COMMON, "epochs": 500}), tmp_path / "out"
    process = start_until_checkpoint(grid, output)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert "stopped by SIGINT; 0 of 4 runs are made" in printed
    assert f"go on with: distill compare {grid} --output {output} --resume" in printed
    assert list(output.glob(f"runs/{FIRST}/checkpoints/step-*.safetensors"))
    assert "4 of 4 runs have not been made" in (output / "comparison.md").read_text()


def test_a_failed_run_is_in_the_table_and_in_the_exit_status(
    write_grid, tmp_path, capsys, in_this_process
):
    # The weights grow by a factor of 1e8 at every step.
    wild = {"optimizer": "sgd", "learning_rate": 1e4, "weight_decay": 1e4, "warmup_epochs": 0}
    grid = write_grid(methods={"wild": wild}, seeds=[0], common={**COMMON, "epochs": 1})
    assert run(["compare", str(grid), "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert "0 of 1, 1 failed" in printed.out
    assert "failed: wild--timm-test_resnet--pixels--seed0: the loss is" in printed.out
    assert "Traceback" not in printed.err


def test_a_comparison_that_is_not_complete_has_its_own_status(
    write_grid, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runner, "launch", lambda request, stop, slot: -9)
    grid, output = write_grid(), tmp_path / "out"
    assert run(["compare", str(grid), "--output", str(output)]) == 3
    printed = capsys.readouterr().out
    assert "\n0 of 4 runs are made" in printed
    assert f"go on with: distill compare {grid} --output {output} --resume" in printed


def test_a_dry_run_prints_the_runs_and_writes_nothing(write_grid, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(["compare", str(write_grid()), "--output", str(output), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert FIRST in printed
    assert "4 runs, 4 of them to be made; how long they take is known when" in printed
    result = distill.compare(write_grid(), output=str(output), dry_run=True)
    assert (result.num_runs, result.num_open) == (4, 4)
    assert not output.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"students": ["resnet188"]}, "did you mean 'resnet18'"),
        ({"teachers": ["pixel"]}, "did you mean 'pixels'"),
        ({"data": "digit"}, "did you mean 'digits'"),
        ({"methods": {"m": {"epochs": 7}}}, "method 'm' sets epochs: it decides the budget"),
        ({"methods": {"m": {"temperatur": 7}}}, "did you mean 'temperature'"),
        ({"tune": {"temperature": [1, 2, 3, 4]}}, "4 tuning runs for each student"),
        ({"data": "flat"}, "no validation images"),
        ({"seeds": [0, -1]}, "seed the value -1, it must be between"),
        ({"tune": {"learning_rate": [0.1, 0]}}, "learning_rate the value 0, it must be positive"),
        ({"tune": {"temperature": [1]}, "methods": {"m": {"nn_every": 0}}}, "nn_every: 0 turns"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_is_written(
    write_grid, make_folder, tmp_path, monkeypatch, capsys, changes, message
):
    monkeypatch.chdir(tmp_path)
    (make_folder() / "train" / "class0").rename(tmp_path / "flat")
    grid = write_grid(**changes)
    before = sorted(tmp_path.rglob("*"))
    assert run(["compare", str(grid)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("distill: error: ")
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
