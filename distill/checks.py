"""Refuses a configuration that cannot work, before anything is read or written."""

from __future__ import annotations

import math

from distill.config import TrainConfig
from distill.errors import DistillError
from distill.options import flattened


def check(config: TrainConfig) -> None:
    """Refuse values out of range and flags that contradict each other.

    Raises:
        DistillError: One sentence per problem, all of them at once.
    """
    problems = [*_missing(config), *_out_of_range(config), *_contradictions(config)]
    if problems:
        raise DistillError("; ".join(problems))


def _missing(config: TrainConfig) -> list[str]:
    networks = config.networks
    return [
        f"--{role} is missing: name a {role} (`distill list {role}s` shows them)"
        for role, name in (("teacher", networks.teacher), ("student", networks.student))
        if not name
    ]


_RANGES: dict[str, tuple[float, float, str]] = {
    "teacher_image_size": (1, math.inf, "at least 1"),
    "teacher_batch_size": (1, math.inf, "at least 1"),
    "image_size": (1, math.inf, "at least 1"),
    "holdout": (0, 0.5, "between 0 and 0.5"),
    "num_workers": (0, math.inf, "at least 0"),
    "queue_size": (1, math.inf, "at least 1"),
    "temperature": (1e-6, 1e6, "positive and finite"),
    "student_temperature": (1e-6, 1e6, "positive and finite"),
    "momentum": (0, 1, "between 0 and 1"),
    "projection_dim": (0, math.inf, "at least 0"),
    "epochs": (1, math.inf, "at least 1"),
    "batch_size": (2, math.inf, "at least 2 (BatchNorm needs two images)"),
    "learning_rate": (1e-12, 1e6, "positive and finite"),
    "weight_decay": (0, 1e6, "at least 0 and finite"),
    "sgd_momentum": (0, 0.999999, "at least 0 and below 1"),
    "decay_factor": (0, 1, "between 0 and 1"),
    "warmup_epochs": (0, 1e6, "at least 0 and finite"),
    "clip_grad_norm": (1e-12, 1e12, "positive and finite"),
    "seed": (0, 2**63 - 1, "between 0 and 2^63 - 1"),
    "nn_every": (0, math.inf, "at least 0"),
    "log_every": (1, math.inf, "at least 1"),
    "checkpoint_every": (1, math.inf, "at least 1"),
}


def _out_of_range(config: TrainConfig) -> list[str]:
    flat = flattened(config)
    return [
        f"{_flag(name)} is {flat[name]}, it must be {allowed}"
        for name, (low, high, allowed) in _RANGES.items()
        if flat[name] is not None and not low <= flat[name] <= high  # a NaN fails every comparison
    ]


def _contradictions(config: TrainConfig) -> list[str]:
    method, optimization = config.method, config.optimization
    problems = []
    if method.variant != "two-queue-momentum" and method.momentum is not None:
        problems.append(
            f"--momentum {method.momentum} goes with --variant two-queue-momentum, "
            f"not with {method.variant}; leave one of them out"
        )
    if config.networks.teacher_view == "student" and config.networks.teacher_image_size:
        problems.append(
            "--teacher-image-size goes with --teacher-view centre: a teacher that sees the "
            "student's crop sees it at --image-size; leave one of them out"
        )
    if config.run.resume and config.run.output is None:
        problems.append("--resume needs --output: name the run directory to continue")
    epochs, warmup = optimization.epochs, optimization.warmup_epochs
    if epochs is not None and warmup is not None and warmup >= epochs:
        problems.append(f"--warmup-epochs is {warmup}, it must be less than --epochs {epochs}")
    return problems


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
