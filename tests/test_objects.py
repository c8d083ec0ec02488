"""Modules, data sets, callbacks and method options in place of names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import Dataset

import distill
from distill.errors import DistillError
from distill.losses import CompRess
from distill.models.networks import wrap_module

SIDE, WIDTH = 16, 6


class Images(Dataset):
    """Images of two classes, which differ in brightness."""

    def __init__(self, num_images: int, seed: int) -> None:
        self.num_images, self.seed = num_images, seed

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, item: int) -> tuple[torch.Tensor, int]:
        if item >= self.num_images:
            raise IndexError(item)
        noise = torch.Generator().manual_seed(1000 * self.seed + item)
        pixels = torch.randint(0, 100, (3, SIDE, SIDE), generator=noise) + 120 * (item % 2)
        return pixels.to(torch.uint8), item % 2


class Pixels(nn.Module):
    """A teacher without weights."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Recorder(distill.Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.epochs: list[int] = []
        self.metrics: dict[str, Any] = {}
        self.end: dict[str, Any] = {}

    def on_step(self, step, metrics):
        assert metrics["loss"] > 0
        self.steps.append(step)

    def on_epoch(self, epoch, metrics):
        self.epochs.append(epoch)

    def on_evaluation(self, metrics):
        self.metrics |= metrics

    def on_end(self, result):
        self.end = dict(result.metrics)


FEW: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "num_workers": 0,
    "log_every": 1,
    "precision": "fp32",
    "device": "cpu",
}


def data() -> tuple[Images, Images]:
    return Images(32, seed=1), Images(12, seed=2)


def test_a_run_of_objects_alone(tmp_path: Path):
    module, recorder = student(), Recorder()
    before = [weight.clone() for weight in module.parameters()]
    run = distill.train(
        teacher=wrap_module(Pixels(), image_size=SIDE),
        student=module,
        data=data(),
        method=CompRess.Options(temperature=0.05),
        callbacks=[recorder],
        output=tmp_path / "run",
        **FEW,
    )
    assert run.student is module
    assert not module.training
    assert not torch.equal(before[0], next(module.parameters()))
    assert recorder.steps == list(range(1, run.metrics["num_steps"] + 1))
    assert recorder.epochs == [1, 2]
    assert recorder.end == run.metrics
    assert recorder.metrics["nn_accuracy"] == run.metrics["nn_accuracy"]
    assert {"teacher_nn_accuracy", "untrained_nn_accuracy"} <= set(recorder.metrics)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["teacher"].startswith("module:")
    assert config["teacher"].endswith("Pixels")
    assert config["student"] == "module:torch.nn.modules.container.Sequential"
    assert config["data"].startswith("dataset:")
    assert config["temperature"] == 0.05
    found = distill.evaluate("nn", run, data=data(), num_workers=0).metrics
    assert found["nn_accuracy"] == run.metrics["nn_accuracy"]
    again = distill.load_student(tmp_path / "run", module=student())
    pixels = torch.stack([image for image, _ in data()[1]])
    assert torch.equal(again(pixels), distill.load_student(run.output, module=module)(pixels))


def test_a_run_of_objects_goes_on_exactly(tmp_path: Path):
    class Stop(distill.Callback):
        def on_epoch(self, epoch, metrics):
            if epoch == 2:
                raise KeyboardInterrupt

    def train(output: str, **options: Any) -> nn.Module:
        return distill.train(
            teacher=wrap_module(Pixels(), image_size=SIDE),
            student=student(),
            data=data(),
            output=tmp_path / output,
            measure="none",
            **(FEW | {"epochs": 3}),
            **options,
        ).student

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("parts", callbacks=[Stop()])
    parts = train("parts", resume=True)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)


def test_names_alone_do_not_bring_modules(tmp_path: Path):
    with pytest.raises(DistillError, match=r"go on in Python with distill.train\(teacher=module"):
        distill.train(
            teacher="module:mine.Net", student="timm:test_resnet", output=tmp_path / "a", **FEW
        )
    with pytest.raises(DistillError, match=r"--teacher-weights w\.pth goes with a teacher that is"):
        distill.train(teacher=Pixels(), student="resnet18", teacher_weights="w.pth", **FEW)
    with pytest.raises(DistillError, match="data_key goes with a data set"):
        distill.train(teacher="pixels", student="resnet18", data="digits", data_key="x")


def test_the_embeddings_of_an_own_teacher_are_kept(tmp_path: Path):
    options: dict[str, Any] = {"data": data(), "num_workers": 0, "teacher_cache": tmp_path}
    first = distill.cache(teacher=wrap_module(Pixels(), image_size=SIDE), **options)["train"]
    again = distill.cache(teacher=wrap_module(Pixels(), image_size=SIDE), **options)["train"]
    assert (first.num_embedded, again.num_embedded) == (32, 0)


def test_calls_work_when_made_twice(tmp_path: Path):
    for number in range(2):
        output = tmp_path / str(number)
        run = distill.train(
            teacher="pixels", student=student(), data=data(), output=output, measure="none", **FEW
        )
        assert run.stopped_by is None
        assert distill.report(run, num_workers=0).exists()
        assert callable(distill.report)
        assert callable(distill.cache)
        assert callable(distill.compare)
        assert callable(distill.export)
