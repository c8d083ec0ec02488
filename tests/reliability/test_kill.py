"""`kill -9` at seeded random moments: nothing that was acknowledged is lost, nothing is different.

A run is killed again and again, while it starts, trains and writes, and continued each time. In the
end it has the weights, the numbers and, but for times, the log of a run that nobody touched.
"""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch

from distill.engine.checkpoint import checkpoints, load_newest
from distill.weights import read_state_dict

TINY = ["--teacher", "pixels", "--student", "timm:test_resnet", "--image-size", "32"]
COMMON = ["--num-workers", "0", "--batch-size", "8", "--log-every", "3", "--seed", "3"]
BASELINES = ["reg", "reg-bn", "simreg", "cc", "cc-released", "crd", "rkd", "sp", "seed"]
TIMES = {"images_per_second", "data_wait"}
FAST = ["--variant two-queue-momentum"]
SOAKED = [
    *("--variant two-queue", "--variant one-queue", "--variant one-queue --anchors queue"),
    "--variant two-queue-momentum --anchors dataset --student-crops 2 --predictor mlp",
    *(f"--method {name}" for name in (*BASELINES, "clusterfit", "supervised")),
    "--student alexnet --image-size 64",  # dropout
]


def assert_same(whole: Path, parts: Path) -> None:
    """Compare everything that two runs left, but for times."""
    for file in whole.glob("*.safetensors"):
        one, other = read_state_dict(file), read_state_dict(parts / file.name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), file.name
    logs, metrics = [], []
    for run in (whole, parts):
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        logs.append([{k: v for k, v in line.items() if k not in TIMES} for line in lines])
        metrics.append(json.loads((run / "metrics.json").read_text()))
        del metrics[-1]["train_seconds"]
    assert logs[0] == logs[1]
    assert metrics[0] == metrics[1]
    states = [load_newest(run / "checkpoints") for run in (whole, parts)]
    torch.testing.assert_close(
        states[0].state["objective"], states[1].state["objective"], rtol=0, atol=0
    )
    torch.testing.assert_close(states[0].shards, states[1].shards, rtol=0, atol=0)


def kill_again_and_again(commands, begin: list[str], output: Path, *, kills: int, seed: int) -> int:
    """Run a command, killed `kills` times at random moments; return how often it was killed."""
    moments, killed, step = random.Random(seed), 0, 0
    folder = output / "checkpoints"
    go_on = [*([] if begin[0].startswith("-") else begin[:1]), "--output", str(output), "--resume"]
    while True:
        command = commands.start(go_on if (output / "config.yaml").exists() else begin)
        if killed == kills:
            assert command.wait() == 0, command.printed
            return killed
        if moments.random() < 0.8:  # else while it starts
            command.wait_for_words("no nearest-neighbour check")
        time.sleep(moments.random() * 0.4)
        acknowledged = checkpoints(folder)[-1] if checkpoints(folder) else None
        command.kill(signal.SIGKILL)
        status = command.wait()
        printed = command.printed
        assert status in (0, -signal.SIGKILL), printed
        if "continuing after step" in printed:
            assert f"continuing after step {step}," in printed
        found = load_newest(folder)  # raises when the newest is not whole
        if acknowledged is not None:
            assert found is not None
            assert found.path >= acknowledged
        step = 0 if found is None else found.progress.step
        if status == 0:
            return killed
        killed += 1


def check(commands, tmp_path: Path, begin: list[str], *, kills: int, seed: int) -> int:
    whole, parts = tmp_path / "whole", tmp_path / f"parts-{seed}"
    if not whole.exists():
        assert commands.start([*begin, "--output", str(whole)]).wait() == 0
    begin = [*begin, "--output", str(parts)]
    killed = kill_again_and_again(commands, begin, parts, kills=kills, seed=seed)
    assert_same(whole, parts)
    return killed


def training(data: Path, flags: str, epochs: int) -> list[str]:
    flags = ["--data", str(data), "--epochs", str(epochs), "--nn-every", "0", *flags.split()]
    return [*TINY, *COMMON, *flags]


@pytest.mark.parametrize("flags", FAST)
def test_a_run_that_is_killed_loses_nothing(commands, make_folder, tmp_path, flags):
    begin = training(make_folder(), flags, epochs=60)
    assert check(commands, tmp_path, begin, kills=5, seed=0) >= 2


def test_a_loader_that_dies_is_started_again(commands, make_folder, tmp_path):
    begin = training(make_folder(), "--variant two-queue --num-workers 2", epochs=40)
    assert commands.start([*begin, "--output", str(tmp_path / "whole")]).wait() == 0
    command = commands.start([*begin, "--output", str(tmp_path / "parts")])
    for number in (3, 12):
        assert command.wait_for_words(f"epoch {number}/40")
        psutil.Process(command.process).children()[0].kill()
    assert command.wait() == 0, command.printed
    assert 1 <= command.printed.count("died; new ones are started") <= 2, command.printed
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.soak
@pytest.mark.parametrize("flags", [*FAST, *SOAKED])
def test_every_method_survives_ten_kills(commands, make_folder, tmp_path, flags):
    begin, killed = training(make_folder(), flags, epochs=60), 0
    for seed in range(20):
        killed += check(commands, tmp_path, begin, kills=10, seed=seed)
        if killed >= 10:
            return
    pytest.fail(f"only {killed} kills came before the run's end")


@pytest.mark.soak
@pytest.mark.parametrize("method", ["simclr", "c-byol"])
def test_pretraining_survives_ten_kills(commands, make_folder, tmp_path, method):
    flags = ["--method", method, "--width", "0.125", "--arch", "resnet18", "--image-size", "32"]
    flags += ["--data", str(make_folder()), "--epochs", "40", "--nn-every", "0"]
    begin, killed = ["pretrain", *flags, *COMMON], 0
    for seed in range(20):
        killed += check(commands, tmp_path, begin, kills=10, seed=seed)
        if killed >= 10:
            return
    pytest.fail(f"only {killed} kills came before the run's end")
