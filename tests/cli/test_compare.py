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
from distill.comparison import sitting
from distill.comparison.child import perform
from distill.evaluation.base import EvaluationOptions, open_evaluation
from distill.models.weights import read_state_dict

COMMON = {"image_size": 16, "batch_size": 128, "num_workers": 0, "precision": "fp32"}
METHODS = {"one queue": {}, "two queues": {"variant": "two-queue-momentum"}}
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
            "methods": METHODS,
            **changes,
        }
        file = tmp_path / "grid.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return write


def wait_for(what: Callable[[], Any], child: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while not what() and time.monotonic() < end and child.poll() is None:
        time.sleep(0.01)
    assert what()


def start(*argv: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "distill", "compare", *map(str, argv)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    # As many threads as here: sums of other blocks differ in their last digits.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment = {**os.environ, **paths, **threads}
    return subprocess.Popen(command, text=True, env=environment, **pipes)


def test_a_grid_that_is_killed_goes_on_and_the_teacher_sees_each_image_once(
    write_grid, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    grid, output = write_grid(), tmp_path / "out"
    child = start(grid, "--output", output)
    wait_for(lambda: list(output.glob(f"runs/{FIRST}/checkpoints/step-*.safetensors")), child)
    child.kill()  # kill -9: its own child is not told by it, and ends nevertheless
    before = child.communicate()[0]  # until the last process that prints is gone
    assert child.returncode == -signal.SIGKILL
    state = json.loads((output / "cells" / f"{FIRST}.json").read_text())["state"]
    assert state == "started"
    # The rest in this process: the start of Python and PyTorch takes longer than the runs.
    monkeypatch.setattr(sitting, "launch_process", lambda request, stop, slot: perform(request))
    assert run(["compare", str(grid), "--output", str(output), "--resume"]) == 0
    printed = capfd.readouterr().out
    assert "continuing after step" in printed
    together = before + printed
    # Validation images are of use to the one run of each seed that measures the teacher.
    for split, number, least in (("train", "1,437", 3), ("val", "360", 1)):
        assert together.count(f"teacher, digits/{split}, center: 0 of {number}") == 1
        assert together.count(f"teacher, digits/{split}, center: all {number}") >= least
    found = json.loads((output / "comparison.json").read_text())
    assert [cell["state"] for cell in found["cells"]] == ["done"] * 4
    measures = ("linear_accuracy", "nn_accuracy", "cluster_alignment")
    for row in found["tables"][0]["rows"][:2]:
        assert row["num_done"] == 2
        mine = [cell for cell in found["cells"] if cell["method"] == row["name"]]
        for measure in measures:
            values = [cell["metrics"][measure] for cell in mine]
            assert row[measure]["mean"] == pytest.approx(sum(values) / 2)
            assert row[measure]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
            assert min(values) > 0.2
    assert "two queues" in (output / "comparison.md").read_text()
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
    other = "two-queues--timm-test_resnet--pixels--seed0"
    measured = json.loads((output / "cells" / f"{other}.json").read_text())["metrics"]
    evaluation = open_evaluation(output / "runs" / other, EvaluationOptions())
    expected = evaluation.evaluator.measure(evaluation.network, what="student")
    assert {name: measured[name] for name in expected} == expected
    assert "teacher_nn_accuracy" not in measured
    capfd.readouterr()
    assert run(["compare", str(output), "--table"]) == 0
    table = capfd.readouterr().out
    assert "timm:test_resnet, taught by pixels" in table
    assert "untrained student" in table


def test_a_signal_ends_a_sitting_with_a_checkpoint(write_grid, tmp_path):
    grid, output = write_grid(common={**COMMON, "epochs": 500}), tmp_path / "out"
    child = start(grid, "--output", output)
    wait_for(lambda: list(output.glob(f"runs/{FIRST}/checkpoints/step-*.safetensors")), child)
    child.send_signal(signal.SIGINT)
    printed = child.communicate(timeout=120)[0]
    assert child.returncode == 130
    assert "Traceback" not in printed
    assert "stopped by SIGINT; 0 of 4 runs are made" in printed
    assert f"go on with: distill compare {grid} --output {output} --resume" in printed
    assert list(output.glob(f"runs/{FIRST}/checkpoints/step-*.safetensors"))
    assert "4 of 4 runs have not been made" in (output / "comparison.md").read_text()


def test_a_failed_run_is_in_the_table_and_in_the_exit_status(
    write_grid, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sitting, "launch_process", lambda request, stop, slot: perform(request))
    # The weights grow by a factor of 1e8 at every step.
    wild = {"optimizer": "sgd", "learning_rate": 1e4, "weight_decay": 1e4, "warmup_epochs": 0}
    grid = write_grid(methods={"wild": wild, "tame": {}}, seeds=[0], common={**COMMON, "epochs": 1})
    output = tmp_path / "out"
    assert run(["compare", str(grid), "--output", str(output)]) == 1
    printed = capsys.readouterr()
    assert "0 of 1, 1 failed" in printed.out
    assert "failed: wild--timm-test_resnet--pixels--seed0: the loss is" in printed.out
    assert "Traceback" not in printed.err
    (cell,) = (output / "runs").glob("tame*")
    assert json.loads((cell / "metrics.json").read_text())["linear_accuracy"] > 0.2


def test_a_comparison_that_is_not_complete_has_its_own_status(
    write_grid, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sitting, "launch_process", lambda request, stop, slot: -9)
    grid, output = write_grid(), tmp_path / "out"
    assert run(["compare", str(grid), "--output", str(output)]) == 3
    printed = capsys.readouterr().out
    assert "\n0 of 4 runs are made" in printed
    assert f"go on with: distill compare {grid} --output {output} --resume" in printed


def test_a_dry_run_prints_the_runs(write_grid, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(["compare", str(write_grid()), "--output", str(output), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"{FIRST}" in printed
    assert "4 runs, 4 of them to be made; how long they take is known when" in printed
    assert not output.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"students": ["resnet188"]}, "did you mean 'resnet18'"),
        ({"teachers": ["pixel"]}, "did you mean 'pixels'"),
        ({"data": "digit"}, "did you mean 'digits'"),
        ({"methods": {"m": {"projection_dim": 7}}}, "leave out --projection-dim"),
        ({"methods": {"m": {"epochs": 7}}}, "method 'm' sets epochs: it decides the budget"),
        ({"methods": {"m": {"temperatur": 7}}}, "did you mean 'temperature'"),
        ({"tune": {"temperature": [1, 2, 3, 4]}}, "by 4 runs for each student"),
        ({"data": "flat"}, "no validation images"),
        ({"seeds": [0, -1]}, "seed-1: --seed is -1, it must be between"),
        ({"tune": {"learning_rate": [0.1, 0]}}, "--learning-rate is 0.0, it must be positive"),
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


def test_python_gives_the_same(write_grid, tmp_path):
    result = distill.compare(write_grid(), output=str(tmp_path / "out"), dry_run=True)
    assert (result.num_runs, result.num_open) == (4, 4)
