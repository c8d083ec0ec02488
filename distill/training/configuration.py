"""Refuses a configuration that cannot work, before anything is read or written.

Fills in the options that follow the data.

The published settings are made for 1.28 million images and 650,000 steps. On another set the same
numbers mean something else: a momentum of 0.999 over 360 steps leaves 70 % of the initial weights
in the momentum copy, and a queue larger than the training set holds an image's own old embeddings.
What an option means (a share of the run, a share of the images) is kept here, not its number.

Fills in the options of pre-training that follow method and data.

Published figures (Lee et al., Compressive Visual Representations, NeurIPS 2021) are kept where
they carry over: concentrations, regression weight, LARS rates. What a small set needs otherwise
(momentum of the target, batch size) is derived as for distillation.

Where a configuration comes from: a recipe or the run that is continued, then what was asked.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from distill.config import (
    COMPRESSING,
    METHODS,
    WITH_TARGET,
    BaselineOptions,
    CacheConfig,
    ImageOptions,
    MethodOptions,
    NetworkOptions,
    OptimizationOptions,
    PretrainConfig,
    PretrainMethodOptions,
    RunOptions,
    TrainConfig,
    ViewOptions,
    flattened,
    range_problems,
    updated,
)
from distill.errors import DistillError
from distill.recipes import CONFIGS, load_recipe
from distill.run_directory import holds_run, read_config, require_usable


def check(config: TrainConfig) -> None:
    """Refuse values out of range and flags that contradict each other.

    Raises:
        DistillError: One sentence per problem, all of them at once; an unknown method alone.
    """
    METHODS.get(config.method.method)
    _complain([*_missing(config), *range_problems(config), *_contradictions(config)])


def check_caching(config: CacheConfig) -> None:
    """Refuse values out of range and a missing teacher.

    Raises:
        DistillError: One sentence per problem, all of them at once.
    """
    _complain([*_missing_network("teacher", config.teacher.teacher), *range_problems(config)])


def check_pretraining(config: PretrainConfig) -> None:
    """Refuse values out of range and flags that contradict each other.

    Raises:
        DistillError: One sentence per problem, all of them at once.
    """
    _complain([*range_problems(config), *_pretraining_contradictions(config)])


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
        does = {"once": "clusters its center crops before training", "never": "needs no teacher"}
        does_so = f"--method {method}, which {does[METHODS.get(method).teacher]}"
        if is_online:
            problems.append(f"--teacher-view student does not go with {does_so}; leave it out")
        if networks.num_teacher_views > 1:
            views = networks.num_teacher_views
            problems.append(f"--num-teacher-views {views} does not go with {does_so}; leave it out")
        return problems
    if is_online and networks.teacher_image_size:
        problems.append(
            "--teacher-image-size goes with --teacher-view center: a teacher that sees the "
            "student's crop sees it at --image-size; leave one of them out"
        )
    if is_online and networks.num_teacher_views > 1:
        problems.append(
            f"--num-teacher-views {networks.num_teacher_views} goes with --teacher-view center: a "
            "teacher that sees the student's crop has no views of its own; leave one of them out"
        )
    if is_online and networks.teacher_cache is not None:
        problems.append(
            "--teacher-cache goes with --teacher-view center: what a teacher makes of the "
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
            "--teacher-mean subtract goes with --teacher-view center: the mean of what a teacher "
            "makes of the student's crop is not known beforehand; leave one of them out"
        )
    if method.anchors != "dataset":
        return problems
    if config.networks.teacher_view == "student":
        problems.append(
            "--anchors dataset goes with --teacher-view center: its anchors are looked up, and "
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


PUBLISHED_BATCH_SIZE = 256
PUBLISHED_QUEUE_SIZES = {"compress": 128_000, "seed": 65_536}
PUBLISHED_MOMENTUM = 0.999
PUBLISHED_TEMPERATURE = 0.04
# Least share of an image that a student's crop shows; of crop-flip 0.08 is published, but a teacher
# speaks of the center crop, and few epochs do not teach what a twelfth of it has to do with that.
DEFAULT_MIN_CROP_AREA = {"crop-flip": 0.5, "crop": 0.6}
CENTERD_TEMPERATURE = 0.07  # similarities spread more without what all embeddings share
# Four parts regression to one of divergence; both alone are behind (docs/comparison.md).
REGRESSION_SHARE = 0.8
PUBLISHED_NUM_NEGATIVES = 16_384
PUBLISHED_NUM_CLUSTERS = 16_000
IMAGES_PER_CLUSTER = 80  # 16,000 clusters of ImageNet's 1.28 million images
NN_CHECKS_PER_RUN = 5
# Peak learning rates at the published batch size; they follow the batch linearly for SGD and by its
# square root for AdamW and Muon, whose steps are normalized.
PEAK_LEARNING_RATE = {"sgd": 0.1, "adamw": 5e-4, "muon": 5e-4, "lars": 0.3}
# Of a student with normalization layers, whose steps are as large as its weights let them be.
NORMALIZED_PEAK_LEARNING_RATE = {**PEAK_LEARNING_RATE, "adamw": 1.5e-3, "muon": 1.5e-3}
SCALING_POWER = {"sgd": 1.0, "adamw": 0.5, "muon": 0.5, "lars": 1.0}


Value = TypeVar("Value")
Options = TypeVar("Options", MethodOptions, BaselineOptions)


@dataclass(frozen=True)
class DataFacts:
    """What the options follow: training images, native side in pixels, augmentation, floor."""

    num_images: int
    native_size: int | None
    augmentation: str
    min_image_size: int
    default_num_workers: int


def resolve(
    config: TrainConfig,
    facts: DataFacts,
    *,
    teacher_dim: int | None,
    student_normalizes: bool,
    published_projection_dim: int | None = None,
) -> TrainConfig:
    """Return `config` with every option that follows the data filled in.

    Args:
        config: The configuration; options that are given stay as they are.
        facts: About the images that are trained on.
        teacher_dim: Width of the teacher's embedding; None for a method without a teacher.
        student_normalizes: Whether the student has normalization layers.
        published_projection_dim: Width of the layer that the published recipe trains the student
            through, if any.
    """
    peaks = NORMALIZED_PEAK_LEARNING_RATE if student_normalizes else PEAK_LEARNING_RATE
    optimization = resolve_optimization(config.optimization, facts.num_images, peaks=peaks)
    epochs = require_resolved(optimization.epochs)
    num_steps = epochs * math.ceil(facts.num_images / require_resolved(optimization.batch_size))
    published = published_projection_dim if config.run.recipe == "published" else None
    return TrainConfig(
        networks=_resolve_networks(config.networks, student_normalizes=student_normalizes),
        images=resolve_images(config.images, facts),
        views=_resolve_views(config, facts),
        method=_resolve_method(config, facts.num_images, num_steps, teacher_dim, published),
        baseline=_resolve_baseline(config.baseline, config.method.method, facts.num_images),
        optimization=optimization,
        run=resolve_run(config.run, epochs),
    )


def _resolve_networks(options: NetworkOptions, *, student_normalizes: bool) -> NetworkOptions:
    """Fill in how the student starts; one that starts from weights is left as they are."""
    scaled = options.student_weights is None and not student_normalizes
    init = default_if_none(options.student_init, "scaled" if scaled else "random")
    return replace(options, student_init=init)


def _resolve_views(config: TrainConfig, facts: DataFacts) -> ViewOptions:
    """Fill in how crops are drawn and the side of the small ones, 96 of 224 pixels in SwAV."""
    options = config.views
    augmentation = default_if_none(options.augmentation, facts.augmentation)
    small = None
    if options.small_crops:
        side = require_resolved(resolve_images(config.images, facts).image_size)
        small = default_if_none(
            options.small_crop_size, max(facts.min_image_size, round(side * 3 / 7))
        )
    return replace(
        options,
        augmentation=augmentation,
        min_crop_area=default_if_none(
            options.min_crop_area, DEFAULT_MIN_CROP_AREA.get(augmentation)
        ),
        small_crop_size=small,
    )


def resolve_images(options: ImageOptions, facts: DataFacts) -> ImageOptions:
    """Fill in the side of the view and the number of loader processes."""
    return replace(
        options,
        image_size=default_if_none(options.image_size, _default_image_size(facts)),
        num_workers=default_if_none(options.num_workers, facts.default_num_workers),
    )


def resolve_run(options: RunOptions, epochs: int) -> RunOptions:
    """Fill in how often the network is checked between epochs."""
    every = max(1, round(epochs / NN_CHECKS_PER_RUN))
    return replace(options, nn_every=default_if_none(options.nn_every, every))


def resolve_optimization(
    options: OptimizationOptions,
    num_images: int,
    *,
    peaks: Mapping[str, float],
    min_steps: int = 64,
) -> OptimizationOptions:
    """Fill in length, batch size and learning rate.

    Args:
        options: What is given stays as it is.
        num_images: Images that are trained on.
        peaks: Peak learning rate at a batch of 256, by optimizer.
        min_steps: Steps of an epoch, about, at least: fewer leave a small set without enough
            updates.
    """
    epochs = default_if_none(options.epochs, 100 if num_images >= 5_000 else 20)
    power = math.floor(math.log2(max(num_images / min_steps, 1)))
    batch_size = default_if_none(options.batch_size, min(PUBLISHED_BATCH_SIZE, max(32, 2**power)))
    scale = (batch_size / PUBLISHED_BATCH_SIZE) ** SCALING_POWER[options.optimizer]
    return replace(
        options,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=default_if_none(options.learning_rate, peaks[options.optimizer] * scale),
        warmup_epochs=default_if_none(options.warmup_epochs, epochs / 20),
    )


def _resolve_method(
    config: TrainConfig,
    num_images: int,
    num_steps: int,
    teacher_dim: int | None,
    published_projection_dim: int | None,
) -> MethodOptions:
    options = _with_defaults(config.method, config.method.method)
    if options.method == "compress":
        options = _resolve_comparison(options, config.networks, num_images)
    # With anchors of the whole dataset there are as many as there are images.
    if "queue_size" in METHODS.get(options.method).options and options.anchors != "dataset":
        most = PUBLISHED_QUEUE_SIZES[options.method]
        queue_size = default_if_none(options.queue_size, min(most, max(1, num_images * 9 // 10)))
        options = replace(options, queue_size=queue_size)
    if options.method != "compress":
        return options
    one_queue = options.variant == "one-queue"
    has_copy = options.variant == "two-queue-momentum"
    projection_dim = teacher_dim if one_queue else published_projection_dim or 0
    if options.predictor == "none":
        projection_dim = 0
    if options.predictor == "mlp":
        projection_dim = projection_dim or teacher_dim
    return replace(
        options,
        student_temperature=default_if_none(options.student_temperature, options.temperature),
        regression_share=default_if_none(
            options.regression_share, REGRESSION_SHARE if one_queue else 0.0
        ),
        momentum=default_if_none(options.momentum, default_momentum(num_steps))
        if has_copy
        else None,
        projection_dim=default_if_none(options.projection_dim, projection_dim),
        kappa_e=default_if_none(options.kappa_e, 1024.0) if options.compression_beta else None,
        kappa_b=default_if_none(options.kappa_b, 10.0) if options.compression_beta else None,
    )


def _resolve_comparison(
    options: MethodOptions, networks: NetworkOptions, num_images: int
) -> MethodOptions:
    """Fill in which anchors there are and how the teacher's embeddings are compared with them.

    Where these are at hand all images are anchors, no more than a published queue holds.
    """
    looks_up = options.variant == "one-queue" and networks.teacher_view == "center"
    asks_for_queue = options.queue_size is not None or options.queue_init != "empty"
    fits = num_images <= PUBLISHED_QUEUE_SIZES["compress"]
    anchors: Literal["queue", "dataset"] = "queue"
    if looks_up and fits and not asks_for_queue:
        anchors = "dataset"
    mean = default_if_none(options.teacher_mean, "subtract" if looks_up else "keep")
    temperature = CENTERD_TEMPERATURE if mean == "subtract" else PUBLISHED_TEMPERATURE
    return replace(
        options,
        anchors=default_if_none(options.anchors, anchors),
        teacher_mean=mean,
        temperature=default_if_none(options.temperature, temperature),
    )


def _resolve_baseline(options: BaselineOptions, method: str, num_images: int) -> BaselineOptions:
    options = _with_defaults(options, method)
    if method == "crd":
        most = min(PUBLISHED_NUM_NEGATIVES, num_images - 1)
        return replace(options, num_negatives=default_if_none(options.num_negatives, most))
    if method == "clusterfit":
        number = min(PUBLISHED_NUM_CLUSTERS, max(2, num_images // IMAGES_PER_CLUSTER))
        return replace(options, num_clusters=default_if_none(options.num_clusters, number))
    return options


def _with_defaults(options: Options, method: str) -> Options:
    """Return a group of options with the method's own defaults where nothing was given."""
    filled = {
        name: default_if_none(getattr(options, name), value)
        for name, value in METHODS.get(method).defaults.items()
        if hasattr(options, name)
    }
    return replace(options, **filled)


def default_momentum(num_steps: int, *, published: float = PUBLISHED_MOMENTUM) -> float:
    """Average over about a tenth of the run, as far as the published momentum reaches."""
    return round(min(published, max(0.5, 1 - 10 / num_steps)), 6)


def _default_image_size(facts: DataFacts) -> int:
    """224 px for folders; small sets at least at 32 px, for ResNets to keep a map of 4 x 4."""
    side = 224 if facts.native_size is None else max(32, facts.native_size)
    return max(side, facts.min_image_size)


def require_resolved(value: Value | None) -> Value:
    """Return an option that `resolve` has filled in."""
    assert value is not None, "the configuration is not resolved"
    return value


def default_if_none(value: Any, fallback: Any) -> Any:
    """Return what was given, else what follows the data."""
    return fallback if value is None else value


LONG_RUN = 1000  # epochs; from here on the published settings of the long runs hold
KAPPA_E = {"c-simclr": 1024.0, "c-byol": 16384.0}
# LARS rate per 256 images, short and long runs.
_LARS_RATES = {"c-byol": (0.35, 0.25)}
_OTHER_LARS_RATES = (0.3, 0.2)
_REGRESSION_WEIGHTS = (5.0, 2.0)
_TARGET_MOMENTA = (0.99, 0.996)
# AdamW must raise the gammas that start at zero within the run: they move by a rate at a time. On
# small sets more steps did more than more negatives.
_OTHER_RATES = {"sgd": 0.1, "adamw": 6e-3, "muon": 1e-3}
_MIN_STEPS = 128


def resolve_pretraining(config: PretrainConfig, facts: DataFacts) -> PretrainConfig:
    """Return `config` with every option that follows method and data filled in."""
    optimization = _resolve_optimization(config, facts.num_images)
    epochs, batch_size = (
        require_resolved(optimization.epochs),
        require_resolved(optimization.batch_size),
    )
    images = resolve_images(config.images, facts)
    small = require_resolved(images.image_size) < 64
    return replace(
        config,
        backbone=replace(
            config.backbone,
            stem=default_if_none(config.backbone.stem, "small" if small else "imagenet"),
        ),
        images=images,
        views=replace(
            config.views,
            augmentation=default_if_none(config.views.augmentation, facts.augmentation),
        ),
        method=_resolve_method_resolve_pretraining(
            config.method, epochs, num_steps=epochs * max(1, facts.num_images // batch_size)
        ),
        optimization=optimization,
        run=resolve_run(config.run, epochs),
    )


def _resolve_optimization(config: PretrainConfig, num_images: int) -> OptimizationOptions:
    epochs = default_if_none(config.optimization.epochs, 100 if num_images >= 5_000 else 200)
    lars = _LARS_RATES.get(config.method.method, _OTHER_LARS_RATES)[_is_long(epochs)]
    return resolve_optimization(
        replace(config.optimization, epochs=epochs),
        num_images,
        peaks={**_OTHER_RATES, "lars": lars},
        min_steps=_MIN_STEPS,
    )


def _resolve_method_resolve_pretraining(
    options: PretrainMethodOptions, epochs: int, *, num_steps: int
) -> PretrainMethodOptions:
    compresses, has_target = options.method in COMPRESSING, options.method in WITH_TARGET
    momentum = default_momentum(num_steps, published=_TARGET_MOMENTA[_is_long(epochs)])
    weight = _REGRESSION_WEIGHTS[_is_long(epochs)]
    return replace(
        options,
        beta=default_if_none(options.beta, 1.0) if compresses else None,
        beta_epochs=default_if_none(options.beta_epochs, math.ceil(epochs / 10))
        if compresses
        else None,
        kappa_e=default_if_none(options.kappa_e, KAPPA_E[options.method]) if compresses else None,
        regression_weight=default_if_none(options.regression_weight, weight)
        if has_target
        else None,
        target_momentum=default_if_none(options.target_momentum, momentum) if has_target else None,
    )


def _is_long(epochs: int) -> bool:
    return epochs >= LONG_RUN


Config = TypeVar("Config", TrainConfig, PretrainConfig)

# What may change between the sittings of one run: where things lie and how they are executed.
_FREE_TO_CHANGE = frozenset(
    {
        *("output", "resume", "recipe", "data", "teacher_weights", "student_weights"),
        *(
            "device",
            "num_workers",
            "teacher_batch_size",
            "teacher_cache",
            "loss_implementation",
            *("on_bad_image", "max_bad_images"),
        ),
        *("log_every", "nn_every", "checkpoint_every", "keep_every", "on_failed_checkpoint"),
        *("queue_sharding", "measure"),
    }
)

# What a recipe says of some options only goes with what it says of another.
STANDS_WITH = {"variant": ("momentum",), "anchors": ("queue_size", "queue_init")}


def run_to_continue(output: Path | None, options: Collection[str]) -> Path | None:
    """Return the run that `--resume` goes on with; None where it has to be begun.

    A command that names what to train can begin a run, and is the same one whenever it is started
    again: by an elastic launcher or a cluster's queue. One that names only where the run lies
    cannot, and is told so by `base_config`.

    Args:
        output: Run directory that was named.
        options: Names of all options that were given, `resume` among them.
    """
    if "resume" not in options or output is None:
        return None
    says_what = any(name == "recipe" or name not in _FREE_TO_CHANGE for name in options)
    return None if says_what and not holds_run(output) else output


def base_config(
    *,
    command: str = "train",
    recipe: str = "default",
    resume_from: Path | None = None,
    asked: Mapping[str, Any] | None = None,
) -> Any:
    """Return the defaults that options override: a recipe's, or those of the run to continue.

    Args:
        command: `train` or `pretrain`.
        recipe: Name of a recipe or path of a YAML file.
        resume_from: Directory of the run to continue, if any.
        asked: What overrides the options of `STANDS_WITH`, by name; a recipe that says otherwise
            no longer says what goes with its own.

    Raises:
        DistillError: Unknown recipe, or no run to continue.
    """
    if resume_from is None:
        return _without_stranded(load_recipe(recipe, command), asked or {})
    require_usable(resume_from, resume=True)
    stored = read_config(resume_from, command=command)
    return updated(CONFIGS[command](), stored, source=f"{resume_from}/config.yaml")


def _without_stranded(config: Config, asked: Mapping[str, Any]) -> Config:
    """Return a recipe with the defaults of what goes with a value that is overridden."""
    said, defaults = flattened(config), flattened(type(config)())
    stranded = {
        name: defaults[name]
        for option, names in STANDS_WITH.items()
        if asked.get(option) not in (None, said.get(option))
        for name in names
    }
    return updated(config, stranded, source="recipe")


def configure(options: Mapping[str, Any], *, command: str = "train") -> Any:
    """Build a configuration from flat options, as `distill.train` takes them.

    Args:
        options: Values by option name.
        command: `train` or `pretrain`.

    Raises:
        DistillError: An unknown option or recipe, or a value of the wrong type.
    """
    output = options.get("output")
    resume_from = run_to_continue(
        Path(output) if output else None,
        [name for name in options if name != "resume" or options[name]],
    )
    recipe = options.get("recipe", "default")
    base = base_config(command=command, recipe=recipe, resume_from=resume_from, asked=options)
    return updated(base, options, source=f"distill.{command}")


def require_same_run(config: Any) -> None:
    """Refuse to continue a run under other settings than it began with.

    Raises:
        DistillError: Naming every option that differs, with both values.
    """
    assert config.run.output is not None
    differing = _differences(read_config(config.run.output), config, "the run", "was asked for")
    if differing:
        raise DistillError(
            f"{config.run.output} cannot be continued under other settings: {'; '.join(differing)}"
            ". Leave these flags out, or start a new run with another --output"
        )


def identity(config: Any) -> dict[str, Any]:
    """Return the options that decide what a run is, by name."""
    flat = flattened(config)
    return {name: value for name, value in flat.items() if name not in _FREE_TO_CHANGE}


def require_own_checkpoint(path: Path, run: Mapping[str, Any], config: Any) -> None:
    """Refuse a checkpoint that another run wrote.

    Args:
        path: Of the checkpoint.
        run: The options in it.
        config: Of the run that goes on.

    Raises:
        DistillError: Naming every option that differs, with both values.
    """
    differing = _differences(run, config, "the checkpoint", "in the run")
    if differing:
        raise DistillError(
            f"checkpoint {path} is of another run: {'; '.join(differing)}. Put the run's own "
            "checkpoints back, or start a new run with another --output"
        )


def _differences(stored: Mapping[str, Any], config: Any, there: str, here: str) -> list[str]:
    return [
        f"--{name.replace('_', '-')} is {stored[name]} in {there} and {value} {here}"
        for name, value in identity(config).items()
        if name in stored and stored[name] != value
    ]


def with_output(config: Config, *names: str) -> Config:
    """Fill in the default run directory, named after what the run is made of."""
    run: RunOptions = config.run
    if run.output is not None:
        return config
    name = "-".join(part.rstrip("/").split("/")[-1].replace(":", "_") for part in names)
    return replace(config, run=replace(run, output=Path("runs") / name))
