"""`distill train` under torchrun: the run of one process, shared by several, said once."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from distill.cli.main import run
from distill.models.weights import read_state_dict
from distill.training.checkpoints import checkpoints, load_newest

TINY = ["--teacher", "pixels", "--student", "timm:test_resnet", "--image-size", "32"]
TINY += ["--num-workers", "0", "--precision", "fp32", "--optimizer", "sgd"]
TINY += ["--learning-rate", "0.003", "--log-every", "1"]  # larger steps magnify rounding


def torchrun(
    num_ranks: int, *argv: str, command: str = "train"
) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start += ["--nproc-per-node", str(num_ranks), "-m", "distill", command, *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        start, capture_output=True, text=True, env=environment, timeout=120, check=False
    )


@contextmanager
def started(
    num_ranks: int, output: Path, *argv: str, launcher: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Start a job under torchrun and wait until it trains."""
    command = [sys.executable, "-m", "torch.distributed.run", *(launcher or ["--standalone"])]
    command += ["--nproc-per-node", str(num_ranks), "-m", "distill", "train", *TINY, *argv]
    command += ["--batch-size", "8", "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, text=True, **streams) as job:
        while not (output / "log.jsonl").exists():
            assert job.poll() is None
            time.sleep(0.1)
        try:
            yield job
        finally:
            if job.poll() is None:  # a test that fails is not to wait for it
                for process in psutil.Process(job.pid).children(recursive=True):
                    process.kill()
                job.kill()


def ranks_of(job: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """Return the processes of a job by rank."""
    children = psutil.Process(job.pid).children()
    environments = {process: process.environ() for process in children}
    return {int(found["RANK"]): one for one, found in environments.items() if "RANK" in found}


def log_lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


@pytest.mark.ddp
def test_three_ranks_train_as_one_and_one_goes_on(
    make_folder, tmp_path, capsys, run_command_on_ranks
):
    data, outputs = make_folder(num_train=9, num_val=3), [tmp_path / "one", tmp_path / "three"]
    (data / "train" / "class1" / "000.png").write_bytes(b"not an image")
    flags = [*TINY, "--data", str(data), "--variant", "two-queue-momentum", "--queue-size", "19"]
    flags += ["--batch-size", "11", "--epochs", "2", "--holdout", "0.1"]
    flags += ["--on-bad-image", "skip", "--queue-init", "prefill"]
    assert run([*flags, "--output", str(outputs[0])]) == 0
    printed = "".join(run_command_on_ranks(3, *flags, "--output", str(outputs[1])))
    assert printed.count("everything is in") == 1
    assert "batches of 11 images over 3 processes" in printed
    folder = outputs[1] / "checkpoints"
    assert len(list(folder.iterdir())) == 2 * (1 + 3)
    logs = [log_lines(output) for output in outputs]
    for one, three in zip(*logs, strict=True):
        assert one.keys() == three.keys()
        assert (one["step"], one["num_anchors"]) == (three["step"], three["num_anchors"])
        assert one["loss"] == pytest.approx(three["loss"], rel=1e-4)
    metrics = [json.loads((output / "metrics.json").read_text()) for output in outputs]
    assert metrics[0].keys() == metrics[1].keys()
    assert metrics[0]["num_skipped_images"] == metrics[1]["num_skipped_images"] == 1
    weights = [read_state_dict(output / "student.safetensors") for output in outputs]
    for name, tensor in weights[0].items():
        difference = (tensor.double() - weights[1][name].double()).norm()
        assert difference <= 1e-4 * tensor.double().norm() + 1e-6, name
    # What three processes began, one goes on with.
    (outputs[1] / "student.safetensors").unlink()
    checkpoints(folder)[-1].unlink()
    assert run(["--output", str(outputs[1]), "--resume"]) == 0
    assert log_lines(outputs[1])[-1]["loss"] == pytest.approx(logs[0][-1]["loss"], rel=1e-4)
    assert len(list(folder.iterdir())) == (1 + 3) + (1 + 1)
    assert yaml.safe_load((outputs[1] / "config.yaml").read_text())["queue_sharding"] == "ranks"
    # The newest checkpoint is that of the one, and the one before it was written by three.
    checkpoints(folder)[-1].unlink()
    next(folder.glob("*.queue-1-of-3.safetensors")).unlink()
    capsys.readouterr()
    assert run(["--output", str(outputs[1]), "--resume"]) == 2
    error = capsys.readouterr().err
    assert "queue-1-of-3.safetensors is missing; put a copy there or start a new run" in error
    assert len(error.splitlines()) == 1


@pytest.mark.ddp
def test_two_ranks_fit_the_clusters_that_one_makes(make_folder, tmp_path, run_command_on_ranks):
    data, outputs = make_folder(num_train=9, num_val=3), [tmp_path / "one", tmp_path / "two"]
    flags = [*TINY, "--data", str(data), "--method", "clusterfit", "--num-clusters", "4"]
    flags += ["--batch-size", "9", "--epochs", "2", "--holdout", "0.1", "--nn-every", "0"]
    assert run([*flags, "--output", str(outputs[0])]) == 0
    printed = "".join(run_command_on_ranks(2, *flags, "--output", str(outputs[1])))
    assert printed.count("clustering 24 embeddings of the teacher into 4 clusters") == 1
    for one, two in zip(*(log_lines(output) for output in outputs), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    checkpoints(outputs[1] / "checkpoints")[-1].unlink()  # what two began, one goes on with
    assert run(["--output", str(outputs[1]), "--resume"]) == 0
    losses = [log_lines(output)[-1]["loss"] for output in outputs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.ddp
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_dies_ends_the_others_soon(make_folder, tmp_path, victim):
    output = tmp_path / "run"
    with started(2, output, "--data", str(make_folder()), "--epochs", "3000") as job:
        ranks = ranks_of(job)
        died = time.monotonic()
        ranks[victim].kill()
        printed, _ = job.communicate(timeout=60)
        assert time.monotonic() - died < 60
        assert job.returncode == 1
    assert not any(process.is_running() for process in ranks.values())
    other = f"distill: error: process {1 - victim} ends, because another process of this job"
    assert printed.count(other) <= 1  # torchrun may have ended it before it could notice
    assert "[rank" not in printed
    checkpoints_left = checkpoints(output / "checkpoints")
    assert load_newest(output / "checkpoints") is not None or not checkpoints_left


@pytest.mark.ddp
@pytest.mark.slow
def test_an_elastic_job_that_loses_a_process_goes_on_by_itself(make_folder, tmp_path):
    """Torchrun starts the same command again, which begins the run at first and then resumes."""
    data, whole, output = str(make_folder()), tmp_path / "whole", tmp_path / "run"
    flags = ["--data", data, "--epochs", "30", "--resume"]
    launcher = ["--nnodes", "1:1", "--max-restarts", "1", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", "127.0.0.1:0", "--rdzv-conf", "is_host=1"]
    done = torchrun(2, *TINY, *flags, "--batch-size", "8", "--output", str(whole))
    assert done.returncode == 0, done.stderr
    with started(2, output, *flags, launcher=launcher) as job:
        while not checkpoints(output / "checkpoints"):
            time.sleep(0.01)
        ranks_of(job)[1].kill()
        printed, _ = job.communicate(timeout=400)
        assert job.returncode == 0, printed
    assert "continuing after step" in printed
    one, other = (read_state_dict(run / "student.safetensors") for run in (whole, output))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.ddp
def test_evaluations_share_the_pass_and_one_measures(make_folder, tmp_path, run_command_on_ranks):
    output = tmp_path / "run"
    flags = ["--data", str(make_folder(num_train=9, num_val=3)), "--batch-size", "8"]
    assert run([*TINY, *flags, "--epochs", "1", "--output", str(output)]) == 0
    unlabeled = tmp_path / "photos" / "train" / "class0"
    measures = {
        "neighbors": ["nn", "--k", "1", "3"],
        "agreement": ["nn", "--agreement", "--data", str(unlabeled)],
        "clusters": ["clusters", "--num-clusters", "3"],
        "linear": ["linear"],
        "layers": ["linear", "--layers", "layer1"],
    }
    for name, (command, *options) in measures.items():
        found = []
        for ranks in (1, 3):
            folder = tmp_path / f"{name}-{ranks}"
            argv = [str(output), *options, "--cache", str(folder / "cache")]
            argv += ["--output", str(folder), "--num-workers", "0"]
            if ranks == 1:
                assert run([command, *argv]) == 0
            else:
                printed = "".join(run_command_on_ranks(ranks, command, *argv))
                measured = {"clusters": "nmi  ", "agreement": "agreement_k1@class0  "}
                assert printed.count(measured.get(name, "accuracy  ")) <= 2
            found.append(json.loads((folder / "metrics.json").read_text()))
        assert found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.ddp
def test_a_command_for_one_process_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["report", str(tmp_path)]) == 2
    assert "`distill report` runs in one process" in capsys.readouterr().err
