"""A tiny network and a few small images, which the commands of all evaluations are tried on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.cli.main import run
from distill.evaluation.base import describe_metric
from distill.models.weights import save_network
from students.registry import build_student

STUDENT = "timm:test_resnet"
FLAGS = ["--student", STUDENT, "--image-size", "32", "--num-workers", "0"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that do not say which network they are of."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(build_student(STUDENT, image_size=32).backbone.state_dict(), file)
    return file


@pytest.fixture
def data(make_folder: Callable[..., Path]) -> Path:
    """Three classes of 12 training and 4 validation images."""
    return make_folder()


@pytest.fixture
def command(weights: Path, data: Path, tmp_path: Path) -> Callable[..., int]:
    """Return a function that runs an evaluation by its command; the numbers go to `measured`."""
    shared = [*FLAGS, "--data", str(data), "--output", str(tmp_path / "measured")]
    return lambda name, *flags: run([name, str(weights), *shared, *flags])


@pytest.fixture
def measure(command: Callable[..., int], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that does so and returns metrics.json; every number has a meaning."""

    def measured(name: str, *flags: str) -> dict[str, Any]:
        assert command(name, *flags) == 0
        metrics = json.loads((tmp_path / "measured" / "metrics.json").read_text())
        for metric in metrics:
            assert describe_metric(metric) is not None, f"{metric} has no meaning"
        return metrics

    return measured


@pytest.fixture
def make_student() -> Callable[..., Path]:
    """Return a function that writes a student.safetensors into a folder."""

    def make(folder: Path, *, seed: int = 0) -> Path:
        torch.manual_seed(seed)
        folder.mkdir(exist_ok=True)
        save_network(build_student(STUDENT, image_size=32), folder / "student.safetensors")
        return folder / "student.safetensors"

    return make
