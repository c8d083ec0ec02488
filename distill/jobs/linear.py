"""Measures linear classifiers on a trained student: all labels, few labels, inner layers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill import distributed
from distill.data.images import FolderImages, Images
from distill.engine.device import require_memory
from distill.errors import DistillError
from distill.evaluation.label_subsets import class_balanced_subset, named_images, read_names
from distill.evaluation.layers import LayerBackbone, layer_network
from distill.jobs.linear_options import LinearOptions, check_linear
from distill.jobs.linear_probe import LinearProbe
from distill.jobs.measurement import Evaluation, open_evaluation
from distill.networks import place


@dataclass(frozen=True)
class Table:
    """What people see beside the metrics: a title, a header, rows of cells."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class LinearReport:
    """What `distill linear` found.

    Attributes:
        metrics: What was added to metrics.json, by name, accuracies as fractions of 1.
        table: The settings that were chosen from, the label seeds, or the layers; None without any.
        per_class: Accuracy by class name, NaN for a class without validation images; the mean over
            label seeds; of layers none.
    """

    metrics: dict[str, Any]
    table: Table | None = None
    per_class: dict[str, float] = field(default_factory=dict)


def evaluate_linear(run_or_weights: Path, options: LinearOptions) -> LinearReport:
    """Measure a trained student.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with
            `options.student`.
        options: How to measure.

    Returns:
        `linear_accuracy` and, with more than five classes, `linear_top5_accuracy`; with a sweep
        the same with `_sweep` and the chosen setting; `linear_accuracy_logistic`; with few labels
        the mean as `linear_accuracy_labels_0.01` and its `_std`; `linear_accuracy_layer_conv1` and
        so on.

    Raises:
        DistillError: No such run, weights that do not fit, no labels, embeddings that are not
            finite, options out of range or against each other, an unknown layer, a list of labels
            that names other images.
    """
    check_linear(options)
    evaluation = open_evaluation(run_or_weights, options)
    evaluation.require_measurable()
    named = _named_images(options, evaluation.evaluator.data.train)
    if options.layers:
        report = _layers(evaluation, options)
    else:
        probe = LinearProbe(evaluation, options, *evaluation.stored())
        report = _few_labels(probe, named) if options.labels is not None else _standard(probe)
    report = replace(report, metrics=evaluation.named(report.metrics))
    evaluation.keep(report.metrics)
    return report


def _named_images(options: LinearOptions, images: Images) -> np.ndarray | None:
    """Return the images that the file of `--labels` names; None when it is no file."""
    if options.labels is None or options.fraction is not None:
        return None
    names = read_names(Path(options.labels).expanduser())
    if not isinstance(images, FolderImages):
        raise DistillError(
            f"--labels {options.labels} lists file names and {images.name} are not files; give a "
            "share of every class, as 0.01"
        )
    paths = [images.relative_path(i) for i in range(len(images))]
    return named_images(names, paths, source=f"--labels {options.labels}")


def _standard(probe: LinearProbe) -> LinearReport:
    found = probe.measure(seed=probe.options.seed)
    suffix = _augmented(probe.options)
    metrics: dict[str, Any] = found.metrics(suffix)
    if found.setting is not None:
        metrics[f"linear_sweep_learning_rate{suffix}"] = found.setting.learning_rate
        metrics[f"linear_sweep_weight_decay{suffix}"] = found.setting.weight_decay
    title = "accuracy on held-out training images, which chose"
    table = Table(title, found.choice_header, found.choice) if found.choice else None
    return LinearReport(metrics, table, _by_name(probe, found.per_class))


def _few_labels(probe: LinearProbe, named: np.ndarray | None) -> LinearReport:
    """Measure with every seed; return mean and standard deviation."""
    options = probe.options
    seeds = range(options.seed, options.seed + options.label_seeds)
    found = [probe.measure(rows=_labelled(probe, named, seed), seed=seed) for seed in seeds]
    share = Path(str(options.labels)).stem if named is not None else f"{options.fraction:g}"
    drawn = [one.metrics(f"_labels_{share}{_augmented(options)}") for one in found]
    metrics: dict[str, Any] = {}
    for name in drawn[0]:
        values = [one[name] for one in drawn]
        metrics[name] = float(np.mean(values))
        if len(values) > 1:
            metrics[f"{name}_std"] = float(np.std(values, ddof=1))
    rows = [
        [str(seed), *(f"{value:.4f}" for value in one.values())]
        for seed, one in zip(seeds, drawn, strict=True)
    ]
    per_class = np.mean([one.per_class for one in found], axis=0)
    return LinearReport(
        metrics, Table("by seed", ["seed", *drawn[0]], rows), _by_name(probe, per_class)
    )


def _labelled(probe: LinearProbe, named: np.ndarray | None, seed: int) -> np.ndarray:
    """Return the training rows that have a label: the named ones, or a share of every class."""
    train, fraction = probe.train, probe.options.fraction
    if named is not None:
        return np.flatnonzero(np.isin(train.index, named))
    assert fraction is not None
    return class_balanced_subset(train.labels, fraction, seed=seed)


def _layers(evaluation: Evaluation, options: LinearOptions) -> LinearReport:
    """Measure layer by layer; all come out of one pass, which nothing keeps and nobody shares."""
    distributed.release_others()
    evaluator = evaluation.evaluator
    network = layer_network(evaluation.network.cpu(), options.layers)
    layers = network.backbone
    assert isinstance(layers, LayerBackbone)
    num_images = len(evaluator.train_index) + len(evaluator.val_index)
    require_memory(
        2 * 4 * network.embedding_dim * num_images,  # the batches, and all of them together
        torch.device("cpu"),
        what=f"what {len(layers.layers)} layers make of the images",
        remedy="name fewer of them with --layers",
    )
    splits = evaluator.embed_both(place(network, evaluator.device), what="student's layers")
    probe = LinearProbe(evaluation, options, splits.train, splits.val)
    metrics: dict[str, Any] = {}
    rows, titles = [], ["layer", "width"]
    for name, columns in layers.columns().items():
        found = probe.measure(columns=columns, seed=options.seed)
        metrics.update(found.metrics(f"_layer_{name}"))
        titles = ["layer", "width", *found.metrics()]
        shown = [f"{value:.4f}" for value in found.metrics().values()]
        rows.append([name, str(layers.widths[name]), *shown])
    return LinearReport(metrics, Table("by layer", titles, rows))


def _augmented(options: LinearOptions) -> str:
    return "_augmented" if options.augment else ""


def _by_name(probe: LinearProbe, per_class: np.ndarray) -> dict[str, float]:
    # There may be classes beyond the last that has an image.
    return dict(zip(probe.class_names(), map(float, per_class), strict=False))
