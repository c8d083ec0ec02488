"""Reads options, metrics and curves from a run directory, without its images."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.evaluation.corruption import read_robustness
from distill.losses import METHODS
from distill.parsing import parse_json
from distill.reports.content import Curves, RunContent, Series
from distill.run_directory import read_config, read_metrics, read_run_metadata
from distill.terminal import described_seconds
from distill.training.callbacks import log_parts
from distill.training.configuration import CONFIGS, default_options

_NOT_REPEATED = {"output", "resume", "recipe"}
# Shown even where it is the default.
_ALWAYS = {"train": frozenset[str](), "pretrain": frozenset({"method", "arch"})}
_LOGGED = (
    ("loss", "Loss", "loss", False),
    ("learning_rate", "Learning rate", "learning rate", False),
    ("holdout_nn_accuracy", "Held-out nearest neighbor", "accuracy on held-out images", True),
)


def read_run(path: Path) -> RunContent:
    """Return the contents of a run directory, without the sections that show images.

    Raises:
        DistillError: Files that cannot be read.
    """
    options = read_config(path)
    command, versions, _ = read_run_metadata(path)
    metrics = read_metrics(path)
    return RunContent(
        name=path.resolve().name,
        facts=_facts(path, options, versions, metrics),
        command=_command(command, options),
        options={name: _plain(value) for name, value in options.items()},
        metrics=metrics,
        curves=tuple(_training_curves(list(log_lines(path)))),
        robustness=_robustness(path),
    )


def _facts(
    path: Path, options: Mapping[str, Any], versions: Any, metrics: Mapping[str, Any]
) -> dict[str, str]:
    side = options.get("image_size")
    size = "" if side is None else f", {side} px"
    started = time.localtime((path / "config.yaml").stat().st_mtime)
    facts = {
        "Student": f"{options['student']}{size}" if options.get("student") else None,
        "Network": f"{options['arch']}{size}" if options.get("arch") else None,
        "Teacher": options.get("teacher"),
        "Method": _method(options),
        "Data": options.get("data"),
        "Epochs": options.get("epochs"),
        "Trained on": time.strftime("%Y-%m-%d", started),
        "Training took": _duration(metrics.get("train_seconds")),
        "Versions": ", ".join(f"{name} {number}" for name, number in dict(versions).items()),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _method(options: Mapping[str, Any]) -> str | None:
    method, variant = options.get("method"), options.get("variant")
    if variant and method in (None, "compress"):  # None: before there were baselines
        return f"CompRess, {variant}"
    return method


def _duration(seconds: Any) -> str | None:
    return described_seconds(seconds) if isinstance(seconds, (int, float)) else None


def _command(command: str, options: Mapping[str, Any]) -> str | None:
    """Return a command with every option that is not the default; None for an unknown command."""
    if command not in CONFIGS:
        return None
    method = str(options.get("method", "compress"))
    defaults = default_options(command, method)
    words = ["distill", command]
    for name, value in options.items():
        if name in _NOT_REPEATED or value is None:
            continue
        if name == "method":
            is_default = value == CONFIGS[command]().method.method
        elif name in defaults:
            is_default = value == defaults[name]
        else:  # of a plugin's method, or of another method in an older run
            is_default = command == "pretrain" or method in METHODS
        if is_default and name not in _ALWAYS[command]:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
            continue
        words += [f"--{flag}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return shlex.join(words)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def log_lines(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run's log, up to an unfinished line of a killed run."""
    for part in log_parts(run):
        with part.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    values = parse_json(line)
                except ValueError:
                    return
                if isinstance(values, dict) and isinstance(values.get("step"), int):
                    yield values


def _training_curves(lines: list[dict[str, Any]]) -> Iterator[Curves]:
    for name, title, label, is_share in _LOGGED:
        # Lines of events repeat the step before them; the held-out check is one of these.
        points = [
            (line["step"], float(line[name]))
            for line in lines
            if isinstance(line.get(name), (int, float)) and (is_share or "event" not in line)
        ]
        if points:
            series = Series(label, *zip(*points, strict=True))
            yield Curves(title, "step", label, [series], is_share)


def _robustness(run: Path) -> Curves | None:
    """Return the mean error over corruptions by severity, with 0 for the clean images.

    None when nothing was measured, or corruptions were measured at different severities.
    """
    newest = {entry["network"]: entry for entry in read_robustness(run).values()}
    series = []
    for network, entry in newest.items():
        rows = list(entry["errors"].values())
        if not rows or any(row.keys() != rows[0].keys() for row in rows):
            continue
        by_severity = {int(s): sum(row[s] for row in rows) / len(rows) for s in rows[0]}
        if entry["clean_error"] is not None:
            by_severity[0] = entry["clean_error"]
        severities = sorted(by_severity)
        series.append(Series(network, severities, [by_severity[s] for s in severities]))
    title = "Mean error over corruptions"
    return Curves(title, "severity", "error", series, True) if series else None
