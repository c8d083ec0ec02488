"""Every method under torchrun as a person runs it: three processes, then two that go on.

The numbers are those of one process. Losses and ranks in one program are tested beside the losses;
here it is the command, with its cache, its checkpoints and its loaders.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.cli.main import run
from distill.engine.checkpoint import checkpoints
from distill.weights import read_state_dict

# Larger steps, or AdamW's, which do not fall with the gradient, would magnify rounding.
COMMON = ["--num-workers", "0", "--precision", "fp32", "--optimizer", "sgd", "--learning-rate"]
COMMON += ["0.003", "--epochs", "2", "--nn-every", "0", "--holdout", "0"]
TINY = ["--teacher", "pixels", "--student", "timm:test_resnet", "--image-size", "32"]
TINY += ["--batch-size", "9"]  # unequal parts of two processes
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


def torchrun(num_ranks: int, *argv: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(num_ranks), "-m", "distill", *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def assert_near(one: Path, other: Path) -> None:
    """Compare trained weights, up to rounding, which BatchNorm of a few rows magnifies.

    Gradients of some ranks left out, or counted twice, would be ten times as far away.
    """
    weights = [read_state_dict(next(folder.glob("*.safetensors"))) for folder in (one, other)]
    for name, tensor in weights[0].items():
        difference = (tensor.double() - weights[1][name].double()).norm()
        assert difference <= 5e-3 * tensor.double().norm() + 1e-5, name


@pytest.mark.soak
@pytest.mark.ddp
@pytest.mark.parametrize("name", COMMANDS)
def test_three_processes_then_two_train_as_one(make_folder, tmp_path, name):
    command = COMMANDS[name]
    flags = [*command, "--data", str(make_folder(num_train=10, num_val=3)), *COMMON]
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
