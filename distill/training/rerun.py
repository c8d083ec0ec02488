"""Trains a run again from what its directory says, and compares what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distill.data.sources import data_or_default, fingerprints, open_images
from distill.errors import DistillError
from distill.models.weights import read_state_dict
from distill.run_directory import (
    BACKBONE,
    STUDENT,
    RunMetadata,
    read_config,
    read_metrics,
    read_run_metadata,
    versions,
)
from distill.training.configuration import stored_config, with_options
from distill.training.run import RunResult

_TIMES = ("train_seconds",)


@dataclass(frozen=True)
class RerunOptions:
    """Where a run is trained again, and on what."""

    output: Path | None = None
    """Run directory; None: the run's name and -rerun."""
    data: str | None = None
    """Where the images lie now; None: where they lay."""
    teacher_weights: Path | None = None
    """Where the teacher's weights lie now; None: where they lay."""
    device: str | None = None
    """auto, cpu, cuda or cuda:N; None: as the run."""
    num_workers: int | None = None
    """Processes that load images; None: as the run."""
    resume: bool = False
    """Go on with a rerun that was stopped."""
    tolerance: float = 0.02
    """Largest difference of a measure, a fraction of 1, that counts as the same result."""


@dataclass(frozen=True)
class Rerun:
    """What came out the second time.

    Attributes:
        result: Of the second run.
        metrics: Numbers that both have, by name: then, now.
        weights_difference: |now - then| / |then| of all weights together; 0 when every bit is the
            same.
        tolerance: As asked for.
    """

    result: RunResult
    metrics: Mapping[str, tuple[float, float]]
    weights_difference: float
    tolerance: float

    @property
    def is_same(self) -> bool:
        """Whether the weights are the same, or all measures within the tolerance."""
        measures = [pair for name, pair in self.metrics.items() if is_measure(name)]
        within = all(abs(then - now) <= self.tolerance for then, now in measures)
        return self.weights_difference == 0 or bool(measures and within)


def rerun(run: Path, options: RerunOptions) -> Rerun | RunResult:
    """Train a finished run again and compare.

    Returns:
        The result alone when the second run was stopped early.

    Raises:
        DistillError: No finished run, images that are not those of the run, or whatever its command
            cannot meet.
    """
    if not (run / "config.yaml").is_file():
        raise DistillError(
            f"{run} is not a run directory: it holds no config.yaml; name one that `distill train` "
            "or `distill pretrain` wrote"
        )
    before = read_run_metadata(run)
    network = run / (BACKBONE if before.command == "pretrain" else STUDENT)
    if not network.exists():
        raise DistillError(
            f"{run} has no {network.name}, so there is nothing to compare with; finish it with "
            f"`distill {before.command} --output {run} --resume`"
        )
    stored = read_config(run)
    asked = {name: getattr(options, name) for name in ("data", "teacher_weights", "device")}
    asked["num_workers"] = options.num_workers
    if before.command == "pretrain":
        del asked["teacher_weights"]
    output = options.output or run.with_name(f"{run.name}-rerun")
    given = {name: value for name, value in asked.items() if value is not None}
    given |= {"output": output, "resume": options.resume}
    # The recipe's file need not be there any more: what it said is in the run's configuration.
    recipe = stored.pop("recipe", "default")
    config = stored_config(stored, before.command, source=f"{run}/config.yaml")
    config = with_options(config, {"resume": False, **given}, source="distill rerun")
    config = replace(config, run=replace(config.run, recipe=recipe))
    _require_same_images(run, before, config.images.data)
    result = _command(before.command)(config)
    if result.stopped_by is not None:
        return result
    then, now = read_metrics(run), result.metrics
    shared = {
        name: (float(then[name]), float(now[name]))
        for name in then
        if name in now and name not in _TIMES and isinstance(then[name], (int, float))
    }
    difference = _difference(read_state_dict(network), read_state_dict(output / network.name))
    return Rerun(result, shared, difference, options.tolerance)


def changed_versions(run: Path) -> dict[str, tuple[str, str]]:
    """Return the packages whose version is another one now: then, now."""
    then, now = read_run_metadata(run).versions, versions()
    return {name: (then[name], now[name]) for name in then if now.get(name, "") != then[name]}


def is_measure(name: str) -> bool:
    """Say whether a number of metrics.json is a fraction of 1 that was measured."""
    return name.endswith(("_accuracy", "_alignment"))


def _command(name: str) -> Any:
    if name == "pretrain":
        from distill.training.pretrain import pretrain

        return pretrain
    from distill.training.train import train

    return train


def _require_same_images(run: Path, before: RunMetadata, data: str | None) -> None:
    now = fingerprints(open_images(data_or_default(data)))
    other = [name for name, value in before.fingerprints.items() if now.get(name) != value]
    if other:
        raise DistillError(
            f"the images of {' and '.join(other)} are not those that {run} was trained with; name "
            "their place with --data"
        )


def _difference(then: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> float:
    if then.keys() != now.keys() or any(then[name].shape != now[name].shape for name in then):
        return float("inf")
    squares = [
        (
            (now[name].double() - then[name].double()).square().sum(),
            then[name].double().square().sum(),
        )
        for name in then
    ]
    moved, length = (sum(float(pair[side]) for pair in squares) for side in (0, 1))
    return (moved / length) ** 0.5 if moved else 0.0
