"""Stopped at seeded random moments: nothing that was acknowledged is lost, nothing is different.

A run is stopped again and again, by `kill -9`, SIGTERM or Ctrl-C, while it starts, trains and
writes, and continued each time. In the end it has the weights, the numbers and, but for times, the
log of a run that nobody touched.
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

from distill.models.weights import read_state_dict
from distill.training.checkpoints import checkpoints, load_newest

TINY = ["--teacher", "pixels", "--student", "timm:test_resnet", "--image-size", "32"]
COMMON = ["--num-workers", "0", "--batch-size", "8", "--log-every", "3", "--seed", "3"]
BASELINES = ["reg", "reg-bn", "simreg", "cc", "cc-released", "crd", "rkd", "sp", "seed"]
TIMES = {"images_per_second", "data_wait"}
KILL, STOP = (signal.SIGKILL,), (signal.SIGTERM, signal.SIGINT)
ENDS = {0, -signal.SIGKILL, -signal.SIGTERM, 143, 130}
FAST = ["--variant two-queue-momentum"]
SOAKED = [
    *("--variant two-queue", "--variant one-queue", "--variant one-queue --anchors queue"),
    "--variant two-queue-momentum --anchors dataset --student-crops 2",
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


def stop_again_and_again(
    commands, begin: list[str], output: Path, *, signals: tuple[int, ...], stops: int, seed: int
) -> int:
    """Run a command, stopped at random moments; return how often it was stopped.

    Args:
        commands: Starts it.
        begin: The command; what goes on with it follows from it.
        output: Its run directory.
        signals: One of them is drawn for each stop.
        stops: How often, at most.
        seed: Of moments and signals.
    """
    moments, stopped, step = random.Random(seed), 0, 0
    folder = output / "checkpoints"
    go_on = [*([] if begin[0].startswith("-") else begin[:1]), "--output", str(output), "--resume"]
    while True:
        command = commands.start(go_on if (output / "config.yaml").exists() else begin)
        if stopped == stops:
            assert command.wait() == 0, command.printed
            return stopped
        if moments.random() < 0.8:  # else while it starts
            command.wait_for_words("no nearest-neighbor check")
        time.sleep(moments.random() * 0.4)
        acknowledged = checkpoints(folder)[-1] if checkpoints(folder) else None
        command.kill(moments.choice(signals))
        status = command.wait()
        printed = command.printed
        assert status in ENDS, printed
        if "continuing after step" in printed:
            assert f"continuing after step {step}," in printed
        found = load_newest(folder)  # raises when the newest is not whole
        if acknowledged is not None:
            assert found is not None
            assert found.path >= acknowledged
        step = 0 if found is None else found.progress.step
        if status == 0:
            return stopped
        stopped += 1


def check(
    commands, tmp_path: Path, begin: list[str], *, signals=KILL, stops: int, seed: int
) -> int:
    whole, parts = tmp_path / "whole", tmp_path / f"parts-{seed}"
    if not whole.exists():
        assert commands.start([*begin, "--output", str(whole)]).wait() == 0
    begin = [*begin, "--output", str(parts)]
    stopped = stop_again_and_again(commands, begin, parts, signals=signals, stops=stops, seed=seed)
    assert_same(whole, parts)
    return stopped


def check_ten(commands, tmp_path: Path, begin: list[str], *, signals: tuple[int, ...]) -> None:
    stopped = 0
    for seed in range(20):
        stopped += check(commands, tmp_path, begin, signals=signals, stops=10, seed=seed)
        if stopped >= 10:
            return
    pytest.fail(f"only {stopped} stops came before the run's end")


def training(data: Path, flags: str, epochs: int) -> list[str]:
    flags = ["--data", str(data), "--epochs", str(epochs), "--nn-every", "0", *flags.split()]
    return [*TINY, *COMMON, *flags]


@pytest.mark.parametrize("flags", FAST)
def test_a_run_that_is_killed_or_asked_to_stop_loses_nothing(
    commands, make_folder, tmp_path, flags
):
    begin = training(make_folder(), flags, epochs=40)
    assert check(commands, tmp_path, begin, signals=KILL + STOP, stops=5, seed=0) >= 2


def test_loaders_wait_for_the_step_and_the_check_to_finish(commands, make_folder, tmp_path):
    begin = [*training(make_folder(), "--num-workers 2 --holdout 0.2", epochs=10)]
    begin[-begin[::-1].index("--nn-every")] = "1"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert commands.start([*begin, "--output", str(whole)]).wait() == 0
    command = commands.start([*begin, "--output", str(parts)])
    for number, delay in ((3, 0.0), (5, 0.2)):
        assert command.wait_for_words(f"epoch {number}/10")
        time.sleep(delay)
        command.kill(signal.SIGTERM)
        assert command.wait() == 143, command.printed
        assert "Traceback" not in command.printed
        assert "died" not in command.printed
        command = commands.start(["--output", str(parts), "--resume"])
    assert command.wait() == 0, command.printed
    assert_same(whole, parts)


def test_a_loader_that_dies_ends_the_run_and_resume_is_exact(commands, make_folder, tmp_path):
    begin = training(make_folder(), "--variant two-queue --num-workers 2", epochs=10)
    assert commands.start([*begin, "--output", str(tmp_path / "whole")]).wait() == 0
    command = commands.start([*begin, "--output", str(tmp_path / "parts")])
    assert command.wait_for_words("epoch 3/10")
    psutil.Process(command.process).children()[0].kill()
    assert command.wait() == 1, command.printed
    assert "a process that loads images" in command.printed
    assert "--resume" in command.printed
    again = commands.start(["train", "--output", str(tmp_path / "parts"), "--resume"])
    assert again.wait() == 0, again.printed
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.soak
@pytest.mark.parametrize("signals", [KILL, STOP], ids=["kill", "stop"])
@pytest.mark.parametrize("flags", [*FAST, *SOAKED])
def test_every_method_survives_ten_stops(commands, make_folder, tmp_path, flags, signals):
    check_ten(commands, tmp_path, training(make_folder(), flags, epochs=60), signals=signals)


@pytest.mark.soak
@pytest.mark.parametrize("signals", [KILL, STOP], ids=["kill", "stop"])
@pytest.mark.parametrize("method", ["simclr", "c-simclr", "byol", "c-byol"])
def test_pretraining_survives_ten_stops(commands, make_folder, tmp_path, method, signals):
    flags = ["--method", method, "--width", "0.125", "--arch", "resnet18", "--image-size", "32"]
    flags += ["--data", str(make_folder()), "--epochs", "40", "--nn-every", "0"]
    check_ten(commands, tmp_path, ["pretrain", *flags, *COMMON], signals=signals)
