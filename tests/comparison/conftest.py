"""What tests of a comparison share: a training that is a few small files, and a grid for it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.comparison import runner, worker
from distill.comparison.worker import Request, perform
from distill.run_directory import RunDirectory, add_metrics, read_metrics
from distill.training.run import RunResult


class Killed(BaseException):
    """Ends the program where it stands, as kill -9 does: nobody catches it."""


class Trainer:
    """Leaves what `distill train` leaves, and breaks where it is told to.

    Attributes:
        begun: How often each run was begun from its start.
        finished: How often each was trained to its end.
        linear: How often the classifier of each was measured.
        configs: What each was trained with.
        at: What to raise, or the signal that stops it, by run and moment.
        held_out: Accuracy on held-out images by learning rate.
        names: Of the runs of `write_grid`'s grid, in the order that they are made.
    """

    killed = Killed

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.linear: Counter[str] = Counter()
        self.configs: dict[str, Any] = {}
        self.at: dict[tuple[str, str], BaseException | str] = {}
        self.held_out: dict[Any, float] = {}
        self.names = [self.name(method, seed) for seed in (0, 1) for method in ("one", "two")]

    @staticmethod
    def name(method: str, seed: int) -> str:
        """Return the name of a run of `write_grid`'s grid."""
        return f"{method}--resnet18--pixels--seed{seed}"

    def train(self, config: Any) -> RunResult:
        run = RunDirectory(config.run.output, resume=config.run.resume)
        try:
            return self._train(config, run)
        finally:
            run.close()

    def _train(self, config: Any, run: RunDirectory) -> RunResult:
        name = run.path.name
        self.configs[name] = config
        self._moment(name, "empty")
        run.write_config(config, command="train")
        self._moment(name, "begun")
        checkpoint = run.checkpoints / "step-000000001.safetensors"
        if not checkpoint.exists():
            self.begun[name] += 1
            checkpoint.write_bytes(b"0" * 1000)
        if stop := self._moment(name, "half"):
            return RunResult(run.path, {}, stop)
        rate = config.optimization.learning_rate
        line = {"step": 9, "epoch": 1, "holdout_nn_accuracy": self.held_out.get(rate, 0.5)}
        (run.path / "log.jsonl").write_text(json.dumps(line) + "\n")
        run.student.write_bytes(b"weights")
        self._moment(name, "unmeasured")
        before = {"teacher_nn_accuracy": 0.95, "untrained_nn_accuracy": 0.3 + 0.1 * config.run.seed}
        after = self._accuracy(config)
        measured = {"none": {}, "trained": after, "all": {**before, **after}}
        run.add_metrics({**measured[config.run.measure], "train_seconds": 60.0})
        self.finished[name] += 1
        self._moment(name, "trained")
        return RunResult(run.path, {}, None)

    def measure(self, request: Request, run: Path) -> None:
        self._moment(run.name, "evaluation")
        if "nn_accuracy" not in read_metrics(run):
            add_metrics(run, self._accuracy(self.configs[run.name]))
        self._moment(run.name, "linear")
        add_metrics(run, {"linear_accuracy": 0.8})
        self.linear[run.name] += 1

    @staticmethod
    def _accuracy(config: Any) -> dict[str, float]:
        accuracy = 0.5 + 0.01 * config.run.seed + 0.2 * (config.run.log_every == 7)
        return {"nn_accuracy": accuracy, "cluster_alignment": accuracy / 2}

    def _moment(self, name: str, moment: str) -> str | None:
        what = self.at.pop((name, moment), None)
        if isinstance(what, BaseException):
            raise what
        return what


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Return the stub, put in the place of training, measuring and processes."""
    stub = Trainer()
    monkeypatch.setattr(worker, "train", stub.train)
    monkeypatch.setattr(worker, "_measure", stub.measure)
    monkeypatch.setattr("distill.comparison.compare.require_runnable", lambda *_: None)
    monkeypatch.setattr(runner, "launch", lambda request, stop, slot: perform(request))
    return stub


@pytest.fixture
def write_grid(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a grid of two methods and two seeds; the second is better."""

    def write(**changes: Any) -> Path:
        content = {
            "data": "digits",
            "common": {"epochs": 2},
            "teachers": ["pixels"],
            "students": ["resnet18"],
            "seeds": [0, 1],
            "methods": {"one": {}, "two": {"log_every": 7}},
            **changes,
        }
        file = tmp_path / "grid.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return write


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def contents() -> Callable[[Path], dict[Path, bytes]]:
    """Return a function from a folder to every file in it with its bytes."""

    def read(folder: Path) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read
