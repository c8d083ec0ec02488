"""Refuses a configuration that cannot work, before anything is read or written."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from distill.config import (
    CacheConfig,
    NetworkOptions,
    OptimizationOptions,
    RunOptions,
    TrainConfig,
)
from distill.errors import DistillError
from distill.methods import METHODS
from distill.options import flattened
from distill.pretrain_config import COMPRESSING, WITH_TARGET, PretrainConfig


def check(config: TrainConfig) -> None:
    """Refuse values out of range and flags that contradict each other.

    Raises:
        DistillError: One sentence per problem, all of them at once; an unknown method alone.
    """
    METHODS.get(config.method.method)
    _complain([*_missing(config), *_out_of_range(config), *_contradictions(config)])


def check_caching(config: CacheConfig) -> None:
    """Refuse values out of range and a missing teacher.

    Raises:
        DistillError: One sentence per problem, all of them at once.
    """
    _complain([*_missing_network("teacher", config.teacher.teacher), *_out_of_range(config)])


def check_pretraining(config: PretrainConfig) -> None:
    """Refuse values out of range and flags that contradict each other.

    Raises:
        DistillError: One sentence per problem, all of them at once.
    """
    _complain([*_out_of_range(config), *_pretraining_contradictions(config)])


def _complain(problems: list[str]) -> None:
    if problems:
        raise DistillError("; ".join(problems))


def _missing(config: TrainConfig) -> list[str]:
    networks = config.networks
    has_none = METHODS.get(config.method.method).teacher == "never"
    return [
        *([] if has_none else _missing_network("teacher", networks.teacher)),
        *_missing_network("student", networks.student),
    ]


def _missing_network(role: str, name: str | None) -> list[str]:
    if name:
        return []
    return [f"--{role} is missing: name a {role} (`distill list {role}s` shows them)"]


_RANGES: dict[str, tuple[float, float, str]] = {
    "teacher_image_size": (1, math.inf, "at least 1"),
    "teacher_batch_size": (1, math.inf, "at least 1"),
    "num_teacher_views": (1, math.inf, "at least 1"),
    "image_size": (1, math.inf, "at least 1"),
    "holdout": (0, 0.5, "between 0 and 0.5"),
    "num_workers": (0, math.inf, "at least 0"),
    "max_bad_images": (0, math.inf, "at least 0"),
    "queue_size": (1, math.inf, "at least 1"),
    "temperature": (1e-6, 1e6, "positive and finite"),
    "student_temperature": (1e-6, 1e6, "positive and finite"),
    "student_crops": (1, math.inf, "at least 1"),
    "small_crops": (0, math.inf, "at least 0"),
    "small_crop_size": (1, math.inf, "at least 1"),
    "momentum": (0, 1, "between 0 and 1"),
    "regression_share": (0, 1, "between 0 and 1"),
    "loss_weight": (1e-12, 1e12, "positive and finite"),
    "min_crop_area": (1e-3, 1, "between 0.001 and 1 (a share of the image's area)"),
    "head_dim": (1, math.inf, "at least 1"),
    "num_negatives": (1, math.inf, "at least 1"),
    "memory_momentum": (0, 1, "between 0 and 1"),
    "distance_weight": (0, 1e12, "at least 0 and finite"),
    "angle_weight": (0, 1e12, "at least 0 and finite"),
    "num_clusters": (2, math.inf, "at least 2"),
    "compression_beta": (0, 1e6, "at least 0 and finite"),
    "beta": (0, 1e6, "at least 0 and finite (it weighs the residual information)"),
    "beta_epochs": (0, 1e6, "at least 0 and finite"),
    "kappa_e": (1e-3, 1e7, "positive, from 0.001 to 10,000,000 (a concentration)"),
    "kappa_b": (1e-3, 1e7, "positive, from 0.001 to 10,000,000 (a concentration)"),
    "regression_weight": (0, 1e6, "at least 0 and finite"),
    "target_momentum": (0, 1, "between 0 and 1"),
    "hidden_dim": (1, math.inf, "at least 1"),
    "accumulate": (1, math.inf, "at least 1"),
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
    "keep_every": (0, math.inf, "at least 0"),
}
# A projection of 0 means none for a student; a sphere needs two dimensions.
_TRAIN_RANGES = {"projection_dim": (0, math.inf, "at least 0")}
_PRETRAIN_RANGES = {"projection_dim": (2, math.inf, "at least 2")}


def _out_of_range(config: Any) -> list[str]:
    flat = flattened(config)
    own = _TRAIN_RANGES if isinstance(config, TrainConfig) else _PRETRAIN_RANGES
    return [
        f"{_flag(name)} is {flat[name]}, it must be {allowed}"
        for name, (low, high, allowed) in {**_RANGES, **own}.items()
        # a NaN fails every comparison
        if flat.get(name) is not None and not low <= flat[name] <= high
    ]


def _contradictions(config: TrainConfig) -> list[str]:
    method = config.method
    problems = _shared_contradictions(config.optimization, config.run)
    problems += _of_other_methods(config)
    if (
        method.method == "compress"
        and method.variant != "two-queue-momentum"
        and method.momentum is not None
    ):
        problems.append(
            f"--momentum {method.momentum} goes with --variant two-queue-momentum, "
            f"not with {method.variant}; leave one of them out"
        )
    if method.regression_share and method.variant != "one-queue":
        problems.append(
            f"--regression-share {method.regression_share} goes with --variant one-queue, in which "
            f"the student has the teacher's width, not with {method.variant}; leave one of them out"
        )
    problems += _anchor_contradictions(config)
    problems += _compression_contradictions(config)
    problems += _view_contradictions(config)
    if method.predictor == "none" and method.projection_dim:
        problems.append(
            f"--projection-dim {method.projection_dim} goes with --predictor linear or mlp, not "
            "with none; leave one of them out"
        )
    if method.predictor == "mlp" and method.projection_dim == 0:
        problems.append(
            "--projection-dim 0 leaves out the layers that --predictor mlp asks for; leave one of "
            "them out"
        )
    networks = config.networks
    if networks.student_init == "scaled" and networks.student_weights is not None:
        problems.append(
            "--student-init scaled changes weights that --student-weights "
            f"{networks.student_weights} brings; leave one of them out"
        )
    return problems + _teacher_contradictions(networks, method.method)


def _view_contradictions(config: TrainConfig) -> list[str]:
    views, method = config.views, config.method.method
    problems = []
    if method != "compress" and (views.student_crops > 1 or views.small_crops):
        problems.append(
            f"--student-crops {views.student_crops} and --small-crops {views.small_crops} go with "
            f"--method compress, {method} looks at one crop; leave them out"
        )
    if views.small_crop_size is not None and not views.small_crops:
        problems.append(
            f"--small-crop-size {views.small_crop_size} goes with --small-crops, the number of "
            "small crops; give both or none"
        )
    return problems


def _of_other_methods(config: TrainConfig) -> list[str]:
    """Refuse options that the method does not have; one of the usual value is not noticed."""
    name = config.method.method
    own = METHODS.get(name).options
    strangers = [
        f"{_flag(option.name)} {getattr(group, option.name)}"
        for group in (config.method, config.baseline)
        for option in fields(group)
        if option.name not in own | {"method"} and getattr(group, option.name) != option.default
    ]
    if not strangers:
        return []
    flags = ", ".join(_flag(option) for option in sorted(own))
    return [
        f"{' and '.join(strangers)} {'goes' if len(strangers) == 1 else 'go'} with another method "
        f"than --method {name}, which has {flags}; leave out what it has not"
    ]


def _teacher_contradictions(networks: NetworkOptions, method: str) -> list[str]:
    problems = []
    is_online = networks.teacher_view == "student"
    if METHODS.get(method).teacher != "every step":
        does = {"once": "clusters its centre crops before training", "never": "needs no teacher"}
        does_so = f"--method {method}, which {does[METHODS.get(method).teacher]}"
        if is_online:
            problems.append(f"--teacher-view student does not go with {does_so}; leave it out")
        if networks.num_teacher_views > 1:
            views = networks.num_teacher_views
            problems.append(f"--num-teacher-views {views} does not go with {does_so}; leave it out")
        return problems
    if is_online and networks.teacher_image_size:
        problems.append(
            "--teacher-image-size goes with --teacher-view centre: a teacher that sees the "
            "student's crop sees it at --image-size; leave one of them out"
        )
    if is_online and networks.num_teacher_views > 1:
        problems.append(
            f"--num-teacher-views {networks.num_teacher_views} goes with --teacher-view centre: a "
            "teacher that sees the student's crop has no views of its own; leave one of them out"
        )
    if is_online and networks.teacher_cache is not None:
        problems.append(
            "--teacher-cache goes with --teacher-view centre: what a teacher makes of the "
            "student's crop is not kept; leave one of them out"
        )
    return problems


def _compression_contradictions(config: TrainConfig) -> list[str]:
    method, crops = config.method, config.views.student_crops
    if method.compression_beta > 0 and crops < 2:
        return [
            f"--compression-beta {method.compression_beta} compares two views of an image and the "
            f"student sees {crops}; add --student-crops 2"
        ]
    if method.compression_beta > 0:
        return []
    return [
        f"{_flag(name)} {value} goes with --compression-beta, which is 0; give both or none"
        for name, value in (("kappa_e", method.kappa_e), ("kappa_b", method.kappa_b))
        if value is not None
    ]


def _anchor_contradictions(config: TrainConfig) -> list[str]:
    method = config.method
    problems = []
    if method.teacher_mean == "subtract" and config.networks.teacher_view == "student":
        problems.append(
            "--teacher-mean subtract goes with --teacher-view centre: the mean of what a teacher "
            "makes of the student's crop is not known beforehand; leave one of them out"
        )
    if method.anchors != "dataset":
        return problems
    if config.networks.teacher_view == "student":
        problems.append(
            "--anchors dataset goes with --teacher-view centre: its anchors are looked up, and "
            "what a teacher makes of the student's crop is not kept; leave one of them out"
        )
    if method.queue_size is not None:
        problems.append(
            f"--queue-size {method.queue_size} goes with --anchors queue: with dataset every "
            "training image is an anchor; leave one of them out"
        )
    nothing_to_fill = method.queue_init == "prefill" and method.variant == "one-queue"
    if method.queue_init == "random" or nothing_to_fill:
        problems.append(
            f"--queue-init {method.queue_init} goes with --anchors queue: with dataset every "
            "anchor is of an image, with one queue from the start; leave one of them out"
        )
    return problems


def _pretraining_contradictions(config: PretrainConfig) -> list[str]:
    method, optimization = config.method, config.optimization
    problems = _shared_contradictions(optimization, config.run)
    for names, methods in (
        (("beta", "beta_epochs", "kappa_e"), COMPRESSING),
        (("regression_weight", "target_momentum"), WITH_TARGET),
    ):
        for name in names:
            value = getattr(method, name)
            if value is not None and method.method not in methods:
                problems.append(
                    f"{_flag(name)} {value} goes with --method {' or '.join(methods)}, not with "
                    f"{method.method}; leave it out"
                )
    if config.views.augmentation == "none":
        problems.append(
            f"--augmentation none gives two equal views and {method.method} learns by comparing "
            "two different ones; use photo or glyph"
        )
    parts = config.accumulation.accumulate
    size = optimization.batch_size
    if parts > 1 and size is not None and parts * 2 > size:
        problems.append(
            f"--accumulate {parts} cuts a batch of {size} into parts of fewer than 2 images; lower "
            "it or raise --batch-size"
        )
    return problems


def _shared_contradictions(optimization: OptimizationOptions, run: RunOptions) -> list[str]:
    problems = []
    if run.resume and run.output is None:
        problems.append("--resume needs --output: name the run directory to continue")
    epochs, warmup = optimization.epochs, optimization.warmup_epochs
    if epochs is not None and warmup is not None and warmup >= epochs:
        problems.append(f"--warmup-epochs is {warmup}, it must be less than --epochs {epochs}")
    return problems


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
