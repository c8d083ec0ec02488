"""Measures the nearest-neighbour accuracy of a trained student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distill.data.sources import open_images
from distill.engine.device import pick_device, pick_precision
from distill.engine.run_directory import add_metrics, read_config
from distill.errors import DistillError
from distill.evaluation.nearest_neighbour import Vote
from distill.jobs.evaluator import Evaluator
from distill.jobs.images import BadImages, data_or_default
from distill.networks import EmbeddingNetwork, place
from students import build_student, load_student


@dataclass(frozen=True)
class NearestNeighbourOptions:
    """How `distill nn` measures."""

    data: str | None = None
    """As for training; None: the data of the run, else $DISTILL_DATA, else digits."""
    student: str | None = None
    """Architecture, for a weights file that does not say it."""
    image_size: int | None = None
    """Side of the view in pixels, for a weights file that does not say it; None: 224."""
    k: int = 1
    """Neighbours that vote."""
    vote: Vote = "majority"
    """One voice each, or weighted by exp(similarity / 0.07)."""
    output: Path | None = None
    """Directory whose metrics.json receives the numbers; None: the run's, if it is a run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do about a file that cannot be decoded."""
    num_workers: int | None = None
    """Processes that load images; None: by cores and data."""


def evaluate_nn(run_or_weights: Path, options: NearestNeighbourOptions) -> dict[str, Any]:
    """Measure a trained student.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with
            `options.student`.
        options: How to measure.

    Returns:
        What was added to metrics.json: `nn_accuracy` (k = 1), else `nn_accuracy_k5`,
        `nn_accuracy_k5_weighted` and so on.

    Raises:
        DistillError: No such run, weights that do not fit, no labels, k out of range.
    """
    is_run = (run_or_weights / "config.yaml").exists()
    run_options = read_config(run_or_weights) if is_run else {}
    network = _load(run_or_weights, options)
    device = pick_device(options.device)
    bad_images = BadImages(options.on_bad_image)
    data = open_images(data_or_default(options.data or run_options.get("data")))
    evaluator = Evaluator(
        data=data,
        train_index=bad_images.good_indices(data.train),
        val_index=bad_images.good_indices(data.val),
        device=device,
        precision=pick_precision(run_options.get("precision", "auto"), device),
        num_workers=options.num_workers,
        bad_images=bad_images,
    )
    accuracy = evaluator.nn_accuracy(
        place(network, device),
        what="student",
        k=options.k,
        vote=options.vote,
    )
    metrics = {_metric_name(options.k, options.vote): accuracy}
    output = options.output or (run_or_weights if is_run else None)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        add_metrics(output, metrics)
    return metrics


def _load(run_or_weights: Path, options: NearestNeighbourOptions) -> EmbeddingNetwork:
    if options.student is None:
        if options.image_size is not None:
            raise DistillError(
                "--image-size goes with --student: a run and a student.safetensors know their own; "
                "leave it out"
            )
        return load_student(run_or_weights)
    if run_or_weights.is_dir():
        raise DistillError(
            f"{run_or_weights} is a directory and brings its own architecture; leave out --student"
        )
    return build_student(
        options.student, image_size=options.image_size, weights=run_or_weights
    ).eval()


def _metric_name(k: int, vote: Vote) -> str:
    name = "nn_accuracy" if k == 1 else f"nn_accuracy_k{k}"
    return name if vote == "majority" or k == 1 else f"{name}_{vote}"
