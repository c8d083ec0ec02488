"""Fills in the options that follow the data.

The published settings are made for 1.28 million images and 650,000 steps. On another set the same
numbers mean something else: a momentum of 0.999 over 360 steps leaves 70 % of the initial weights
in the momentum copy, and a queue larger than the training set holds an image's own old embeddings.
What an option means (a share of the run, a share of the images) is kept here, not its number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from distill.config import (
    BaselineOptions,
    ImageOptions,
    MethodOptions,
    NetworkOptions,
    OptimizationOptions,
    RunOptions,
    TrainConfig,
    ViewOptions,
)
from distill.methods import METHODS

PUBLISHED_BATCH_SIZE = 256
PUBLISHED_QUEUE_SIZES = {"compress": 128_000, "seed": 65_536}
PUBLISHED_MOMENTUM = 0.999
PUBLISHED_TEMPERATURE = 0.04
# Least share of an image that a student's crop shows; of crop-flip 0.08 is published, but a teacher
# speaks of the centre crop, and few epochs do not teach what a twelfth of it has to do with that.
DEFAULT_MIN_CROP_AREA = {"crop-flip": 0.5, "crop": 0.6}
CENTRED_TEMPERATURE = 0.07  # similarities spread more without what all embeddings share
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
    epochs = given(optimization.epochs)
    num_steps = epochs * math.ceil(facts.num_images / given(optimization.batch_size))
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
    init = either(options.student_init, "scaled" if scaled else "random")
    return replace(options, student_init=init)


def _resolve_views(config: TrainConfig, facts: DataFacts) -> ViewOptions:
    """Fill in how crops are drawn and the side of the small ones, 96 of 224 pixels in SwAV."""
    options = config.views
    augmentation = either(options.augmentation, facts.augmentation)
    small = None
    if options.small_crops:
        side = given(resolve_images(config.images, facts).image_size)
        small = either(options.small_crop_size, max(facts.min_image_size, round(side * 3 / 7)))
    return replace(
        options,
        augmentation=augmentation,
        min_crop_area=either(options.min_crop_area, DEFAULT_MIN_CROP_AREA.get(augmentation)),
        small_crop_size=small,
    )


def resolve_images(options: ImageOptions, facts: DataFacts) -> ImageOptions:
    """Fill in the side of the view and the number of loader processes."""
    return replace(
        options,
        image_size=either(options.image_size, _default_image_size(facts)),
        num_workers=either(options.num_workers, facts.default_num_workers),
    )


def resolve_run(options: RunOptions, epochs: int) -> RunOptions:
    """Fill in how often the network is checked between epochs."""
    every = max(1, round(epochs / NN_CHECKS_PER_RUN))
    return replace(options, nn_every=either(options.nn_every, every))


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
    epochs = either(options.epochs, 100 if num_images >= 5_000 else 20)
    power = math.floor(math.log2(max(num_images / min_steps, 1)))
    batch_size = either(options.batch_size, min(PUBLISHED_BATCH_SIZE, max(32, 2**power)))
    scale = (batch_size / PUBLISHED_BATCH_SIZE) ** SCALING_POWER[options.optimizer]
    return replace(
        options,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=either(options.learning_rate, peaks[options.optimizer] * scale),
        warmup_epochs=either(options.warmup_epochs, epochs / 20),
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
        queue_size = either(options.queue_size, min(most, max(1, num_images * 9 // 10)))
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
        student_temperature=either(options.student_temperature, options.temperature),
        regression_share=either(options.regression_share, REGRESSION_SHARE if one_queue else 0.0),
        momentum=either(options.momentum, default_momentum(num_steps)) if has_copy else None,
        projection_dim=either(options.projection_dim, projection_dim),
        kappa_e=either(options.kappa_e, 1024.0) if options.compression_beta else None,
        kappa_b=either(options.kappa_b, 10.0) if options.compression_beta else None,
    )


def _resolve_comparison(
    options: MethodOptions, networks: NetworkOptions, num_images: int
) -> MethodOptions:
    """Fill in which anchors there are and how the teacher's embeddings are compared with them.

    Where these are at hand all images are anchors, no more than a published queue holds.
    """
    looks_up = options.variant == "one-queue" and networks.teacher_view == "centre"
    asks_for_queue = options.queue_size is not None or options.queue_init != "empty"
    fits = num_images <= PUBLISHED_QUEUE_SIZES["compress"]
    anchors: Literal["queue", "dataset"] = "queue"
    if looks_up and fits and not asks_for_queue:
        anchors = "dataset"
    mean = either(options.teacher_mean, "subtract" if looks_up else "keep")
    temperature = CENTRED_TEMPERATURE if mean == "subtract" else PUBLISHED_TEMPERATURE
    return replace(
        options,
        anchors=either(options.anchors, anchors),
        teacher_mean=mean,
        temperature=either(options.temperature, temperature),
    )


def _resolve_baseline(options: BaselineOptions, method: str, num_images: int) -> BaselineOptions:
    options = _with_defaults(options, method)
    if method == "crd":
        most = min(PUBLISHED_NUM_NEGATIVES, num_images - 1)
        return replace(options, num_negatives=either(options.num_negatives, most))
    if method == "clusterfit":
        number = min(PUBLISHED_NUM_CLUSTERS, max(2, num_images // IMAGES_PER_CLUSTER))
        return replace(options, num_clusters=either(options.num_clusters, number))
    return options


def _with_defaults(options: Options, method: str) -> Options:
    """Return a group of options with the method's own defaults where nothing was given."""
    filled = {
        name: either(getattr(options, name), value)
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


def given(value: Value | None) -> Value:
    """Return an option that `resolve` has filled in."""
    assert value is not None, "the configuration is not resolved"
    return value


def either(value: Any, fallback: Any) -> Any:
    """Return what was given, else what follows the data."""
    return fallback if value is None else value
