"""Measures how much trained encoders compress: information in nats, Lipschitz bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill.data.images import Images
from distill.data.two_views import default_pretraining_augmentation
from distill.engine.device import full_float32, images_per_pass
from distill.engine.run_directory import read_config
from distill.errors import DistillError
from distill.evaluation.embed_views import EmbeddedViews, embed_views
from distill.evaluation.information import measure_information
from distill.evaluation.lipschitz import lipschitz_bounds
from distill.jobs.definition import Definition
from distill.jobs.measurement import Evaluation, MeasurementOptions, named_by_data, open_evaluation
from distill.jobs.projection import Projection, has_heads, through_heads
from distill.losses.von_mises_fisher import check_kappa


@dataclass(frozen=True)
class MeasureOptions(MeasurementOptions):
    """How `distill measure` measures."""

    layer: Literal["projection", "backbone"] | None = None
    """What is measured, L2-normalized: the output of the heads of pre-training, or the embedding;
    None: the projection where the run has one."""
    kappa_e: float = 1024.0
    """Concentration of e(z|x), the same for all runs."""
    kappa_b: float = 10.0
    """Concentration of b(z|y), the same for all runs."""
    num_images: int = 1024
    """Images to measure on, of the validation images where there are any."""
    augmentation: Literal["photo", "glyph"] | None = None
    """How the two views differ, as in pre-training; None: by data."""
    seed: int = 0
    """Picks images, views, samples, pairs and noise."""


@dataclass(frozen=True)
class Measurement:
    """What was measured of one run.

    Attributes:
        path: As it was given.
        method: The run's method, `distilled` for CompRess, `weights` for a bare file.
        beta: The run's weight of the residual information; None without.
        definition: What the numbers mean.
        numbers: By name, see `distill.evaluation.information` and `distill.evaluation.lipschitz`.
        other_data: Name of the data, when it is not what the run was trained on.
    """

    path: Path
    method: str
    beta: float | None
    definition: Definition
    numbers: dict[str, float]
    other_data: str | None = None

    def metrics(self) -> dict[str, Any]:
        """Return what metrics.json receives; names tell the backbone's numbers and other data."""
        prefix = "backbone_" if self.definition.layer == "backbone" else ""
        described = {**self.numbers, "measure_definition": "; ".join(self.definition.lines())}
        metrics = {prefix + name: value for name, value in described.items()}
        return named_by_data(metrics, self.other_data)


@dataclass(frozen=True)
class _Subject:
    """A run that is ready to be measured."""

    path: Path
    evaluation: Evaluation
    layer: str
    encoder: Projection


def measure(runs_or_weights: Sequence[Path], options: MeasureOptions) -> list[Measurement]:
    """Measure trained encoders by one definition.

    All of them are opened before the first is measured, so that a mistake shows early.

    Args:
        runs_or_weights: Run directories, student.safetensors or backbone.safetensors files, or
            other weights with `options.student`; at least one.
        options: How to measure.

    Returns:
        A measurement for each, in order; each was added to the metrics.json of its run.

    Raises:
        DistillError: No such run, weights that do not fit, a layer that is not there, a number out
            of range, fewer than two images.
    """
    _check(runs_or_weights, options)
    subjects = [_open(path, options) for path in runs_or_weights]
    return [_measured(subject, options) for subject in subjects]


def _check(runs_or_weights: Sequence[Path], options: MeasureOptions) -> None:
    if not runs_or_weights:
        raise DistillError("no run to measure; name at least one run directory or weights file")
    if len(runs_or_weights) > 1 and options.output is not None:
        raise DistillError(
            f"--output {options.output} has room for the numbers of one run and "
            f"{len(runs_or_weights)} were given; leave it out"
        )
    check_kappa("--kappa-e", options.kappa_e)
    check_kappa("--kappa-b", options.kappa_b)
    if options.num_images < 2:
        raise DistillError(f"--num-images is {options.num_images}, it must be at least 2")
    if not 0 <= options.seed < 2**63:
        raise DistillError(f"--seed is {options.seed}, it must be between 0 and 2^63 - 1")


def _open(path: Path, options: MeasureOptions) -> _Subject:
    evaluation = open_evaluation(path, options)
    layer = options.layer or ("projection" if has_heads(path) else "backbone")
    network = evaluation.network
    encoder = Projection(network) if layer == "backbone" else through_heads(network, path)
    return _Subject(path, evaluation, layer, encoder)


def _measured(subject: _Subject, options: MeasureOptions) -> Measurement:
    evaluator = subject.evaluation.evaluator
    augmentation = options.augmentation or default_pretraining_augmentation(evaluator.data)
    images, indices = _chosen_images(subject.evaluation, options)
    views = _embedded(subject, images, indices, augmentation, options)
    definition = Definition(
        layer=subject.layer,
        width=views.first.shape[1],
        image_size=views.images.shape[-1],
        images=images.name,
        num_images=len(views.images),
        augmentation=augmentation,
        seed=options.seed,
        kappa_e=options.kappa_e,
        kappa_b=options.kappa_b,
    )
    numbers = _numbers(subject, views, options)
    measurement = Measurement(
        subject.path,
        *_method_and_beta(subject.path),
        definition,
        numbers,
        subject.evaluation.other_data,
    )
    subject.evaluation.keep(measurement.metrics())
    return measurement


def _embedded(
    subject: _Subject,
    images: Images,
    indices: np.ndarray,
    augmentation: str,
    options: MeasureOptions,
) -> EmbeddedViews:
    evaluator = subject.evaluation.evaluator
    return embed_views(
        subject.encoder,
        images,
        indices,
        image_size=subject.encoder.network.input.image_size,
        augmentation=augmentation,
        seed=options.seed,
        device=evaluator.device,
        num_workers=options.num_workers,
        description=str(subject.path),
        on_bad_images=evaluator.bad_images,
    )


def _chosen_images(evaluation: Evaluation, options: MeasureOptions) -> tuple[Images, np.ndarray]:
    evaluator = evaluation.evaluator
    images, usable = evaluator.data.train, evaluator.train_index
    if evaluator.data.val is not None and len(evaluator.val_index):
        images, usable = evaluator.data.val, evaluator.val_index
    if len(usable) < 2:
        raise DistillError(
            f"{images.name} has {len(usable)} images that can be read, at least 2 are needed"
        )
    number = min(options.num_images, len(usable))
    chosen = np.random.default_rng(options.seed).choice(usable, size=number, replace=False)
    return images, np.sort(chosen)


def _numbers(subject: _Subject, views: EmbeddedViews, options: MeasureOptions) -> dict[str, float]:
    information = measure_information(
        views.first,
        views.second,
        kappa_e=options.kappa_e,
        kappa_b=options.kappa_b,
        seed=options.seed,
    )
    device = subject.evaluation.evaluator.device
    with full_float32(device):
        bounds = lipschitz_bounds(
            subject.encoder,
            views.images,
            kappa=options.kappa_e,
            device=device,
            batch_size=images_per_pass(views.images.shape[-1], device),
            seed=options.seed,
        )
    return {**vars(information), **vars(bounds)}


def _method_and_beta(path: Path) -> tuple[str, float | None]:
    if not (path / "config.yaml").exists():
        return "weights", None
    config = read_config(path)
    method = config.get("method", "compress")  # before there were baselines
    return "distilled" if method == "compress" else method, config.get("beta")
