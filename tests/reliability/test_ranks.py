"""Every method under torchrun as a person runs it: three processes, then two that go on.

The numbers are those of one process. Losses and ranks in one program are tested beside the losses;
here it is the command, with its cache, its checkpoints and its loaders. Two machines are two
launchers of one process each.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from distill.cli.main import run
from distill.models.weights import read_state_dict
from distill.training.checkpoints import checkpoints

# Larger steps, or AdamW's, which do not fall with the gradient, would magnify rounding.
COMMON = ["--num-workers", "0", "--precision", "fp32", "--optimizer", "sgd", "--learning-rate"]
COMMON += ["0.00003", "--epochs", "2", "--nn-every", "0", "--holdout", "0"]
TINY = ["--teacher", "pixels", "--student", "timm:test_resnet", "--image-size", "32"]
TINY += ["--batch-size", "9"]  # unequal parts of two processes; the last one has six images
PRETRAINED = ["pretrain", "--arch", "resnet18", "--width", "0.125", "--image-size", "32"]
PRETRAINED += ["--batch-size", "12"]  # which wants equal ones
BASELINES = ["reg", "reg-bn", "simreg", "cc", "cc-released", "crd", "rkd", "sp", "seed"]
# C-SimCLR and C-BYOL draw z, each process its own.
COMMANDS = {
    **{name: [*TINY, "--variant", name] for name in ("two-queue-momentum", "two-queue")},
    "one-queue": [*TINY, "--variant", "one-queue"],
    "one-queue, queue": [*TINY, "--variant", "one-queue", "--queue-size", "19"],
    **{name: [*TINY, "--method", name] for name in (*BASELINES, "supervised")},
    "clusterfit": [*TINY, "--method", "clusterfit", "--num-clusters", "4"],
    **{name: [*PRETRAINED, "--method", name] for name in ("simclr", "byol")},
}


def launch(num_ranks: int, launcher: list[str], *argv: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *launcher]
    command += ["--nproc-per-node", str(num_ranks), "-m", "distill", *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **streams)


def require_done(*jobs: subprocess.Popen[str]) -> None:
    for job in jobs:
        _, said = job.communicate(timeout=600)
        assert job.returncode == 0, said


def torchrun(num_ranks: int, *argv: str) -> None:
    require_done(launch(num_ranks, ["--standalone"], *argv))


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def assert_near(one: Path, other: Path) -> None:
    """Compare trained weights, up to rounding, which BatchNorm and RKD's angles magnify.

    Biases begin at 0, so that theirs is the error of what was learned: gradients of some ranks left
    out, or counted twice, would be tens of times as far away.
    """
    weights = [read_state_dict(next(folder.glob("*.safetensors"))) for folder in (one, other)]
    for name, tensor in weights[0].items():
        difference = (tensor.double() - weights[1][name].double()).norm()
        assert difference <= 5e-3 * tensor.double().norm() + 1e-7, name


@pytest.mark.soak
@pytest.mark.ddp
@pytest.mark.parametrize("name", COMMANDS)
def test_three_processes_then_two_train_as_one(make_folder, tmp_path, name):
    command = COMMANDS[name]
    flags = [*command, "--data", str(make_folder(num_train=11, num_val=3)), *COMMON]
    one, several = tmp_path / "one", tmp_path / "several"
    assert run([*flags, "--output", str(one)]) == 0
    begin = flags if command[0] == "pretrain" else ["train", *flags]
    torchrun(3, *begin, "--output", str(several))
    assert_near(one, several)
    newest = checkpoints(several / "checkpoints")[-1]
    for file in (*newest.parent.glob(f"{newest.stem}.*"), *several.glob("*.safetensors")):
        file.unlink()
    torchrun(2, begin[0], "--output", str(several), "--resume")
    assert_near(one, several)


@pytest.mark.soak
@pytest.mark.ddp
def test_two_machines_known_in_advance_train_as_one(make_folder, tmp_path):
    flags = [*TINY, "--data", str(make_folder(num_train=11, num_val=3)), *COMMON]
    one, both = tmp_path / "one", tmp_path / "both"
    assert run([*flags, "--output", str(one)]) == 0
    shared = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", free_port()]
    machines = [[*shared, "--node-rank", str(rank)] for rank in range(2)]
    require_done(*[launch(1, at, "train", *flags, "--output", str(both)) for at in machines])
    assert_near(one, both)


@pytest.mark.soak
@pytest.mark.ddp
def test_an_elastic_job_goes_on_without_a_machine_that_is_lost(make_folder, tmp_path):
    flags = [*TINY, "--data", str(make_folder(num_train=11, num_val=3)), *COMMON]
    flags[flags.index("--epochs") + 1] = "60"
    rest = tmp_path / "rest"
    launcher = ["--nnodes", "1:2", "--max-restarts", "1", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "job"]
    launcher += ["--rdzv-conf", "last_call_timeout=20"]  # as long as the other may take to come
    argv = ["train", *flags, "--output", str(rest), "--resume"]
    first = launch(1, [*launcher, "--rdzv-conf", "last_call_timeout=20,is_host=1"], *argv)
    lost = launch(1, [*launcher, "--rdzv-conf", "last_call_timeout=20,is_host=0"], *argv)
    while not checkpoints(rest / "checkpoints"):
        assert first.poll() is None
        time.sleep(0.01)
    ranks = psutil.Process(lost.pid).children()
    assert [process.environ()["WORLD_SIZE"] for process in ranks if process.is_running()] == ["2"]
    for process in (lost, *ranks):
        os.kill(process.pid, signal.SIGKILL)
    require_done(first)
    lost.communicate()
    lines = [json.loads(line) for line in (rest / "log.jsonl").read_text().splitlines()]
    epochs = [line["epoch"] for line in lines if line.get("event") == "epoch"]
    assert epochs == list(range(1, 61))  # none is missing, none was made twice
    assert list(rest.glob("*.safetensors"))
