"""What the numbers of `distill measure` mean: printed with them, and kept with them.

The unit vectors of a trained network: through the heads of pre-training, or as they are.

Embeds the two views of pre-training of a set of images; they follow from a seed alone.

Shapes: N images of side S, D width of the encoder.

Measures how much trained encoders compress: information in nats, Lipschitz bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from distill.config import PretrainConfig, updated
from distill.data.distortions import distort
from distill.data.images import Images
from distill.data.loader import Batch, TrainingViews, training_loader
from distill.data.sources import default_pretraining_augmentation
from distill.data.views import two_views
from distill.data.workers import guarded_batches
from distill.device import full_float32, images_per_pass
from distill.errors import DistillError
from distill.evaluation.base import EvaluationOptions, EvaluationResult, Subject, open_evaluation
from distill.evaluation.information import CONTRAST, measure_information
from distill.evaluation.lipschitz import MIN_DISTANCE, lipschitz_bounds
from distill.losses.von_mises_fisher import check_kappa, entropy, mean_cosine, residual_constant
from distill.models.networks import EmbeddingNetwork
from distill.models.weights import mismatches, read_state_dict, shapes
from distill.run_directory import HEADS, read_config
from distill.terminal import progress_bar
from distill.training.pretrain import build_method
from teachers.heads import directions
from teachers.load import load_trained


@dataclass(frozen=True)
class Definition:
    """Everything that two runs must share for their numbers to compare.

    Attributes:
        layer: `projection` or `backbone`.
        width: D, of that layer.
        image_size: Side of the views in pixels.
        images: Which set the images are of, in words.
        num_images: How many.
        augmentation: `photo` or `glyph`.
        seed: Of images, views, samples, pairs and noise.
        kappa_e: Concentration of e(z|x).
        kappa_b: Concentration of b(z|y).
    """

    layer: str
    width: int
    image_size: int
    images: str
    num_images: int
    augmentation: str
    seed: int
    kappa_e: float
    kappa_b: float

    def lines(self) -> list[str]:
        """Return the definition in words, a line for each part."""
        kappas, contrast = (self.kappa_e, self.kappa_b), min(CONTRAST, self.num_images)
        layer = "projection" if self.layer == "projection" else "embedding of the backbone"
        return [
            f"x, y: both views ({self.augmentation}) of {self.num_images:,} images of "
            f"{self.images}, {self.image_size} px, pixels in [0, 1], seed {self.seed}",
            f"f: L2-normalized {layer}, D = {self.width}, float32",
            f"e(z|x) = vMF(f(x), kappa_e = {self.kappa_e:g}), b(z|y) = vMF(f(y), kappa_b = "
            f"{self.kappa_b:g}), nats; entropy_e = {entropy(self.width, self.kappa_e):.4f}",
            "residual_information = mean kappa_b A (1 - f(x).f(y)), A = A_D(kappa_e) = "
            f"{mean_cosine(self.width, self.kappa_e):.6f}, without the constant part of "
            f"I(X;Z|Y), residual_constant = {residual_constant(self.width, *kappas):.4f}",
            "view_kl = mean KL(e(.|x) || e(.|y)) = mean kappa_e A (1 - f(x).f(y))",
            f"information_y_z: lower bound on I(Y;Z) among {contrast} images, at most "
            f"log(2 * {contrast} - 1) = {math.log(2 * contrast - 1):.4f}",
            "lipschitz: largest |f(x) - f(x')| / |x - x'| found; kl_lipschitz: largest KL / "
            f"|x - x'|; Euclidean, |x - x'| >= {MIN_DISTANCE:g}; x an image, x' sampled (another "
            "image or x and noise) and then ascended by gradient: lower bounds",
        ]


_WORDS = {
    "layer": "layer",
    "width": "width D",
    "image_size": "image size",
    "images": "images",
    "num_images": "number of images",
    "augmentation": "augmentation",
}


def why_not_comparable(definitions: Sequence[Definition]) -> str | None:
    """Say in what the definitions of several runs differ; None when they agree."""
    differing = []
    for name, words in _WORDS.items():
        values = sorted({getattr(definition, name) for definition in definitions})
        if len(values) > 1:
            differing.append(f"{words} ({', '.join(map(str, values))})")
    return f"these runs differ in {' and '.join(differing)}" if differing else None


class Projection(nn.Module):
    """Maps images to unit vectors, frozen and in evaluation mode; images may take a gradient.

    Args:
        network: The backbone.
        method: The heads that it was pre-trained through; None: the normalized embedding itself.
    """

    def __init__(self, network: EmbeddingNetwork, method: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.method: Any = method
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return unit vectors (B, P), float32.

        Args:
            images: (B, 3, S, S), uint8 in 0..255 or float in [0, 1], not normalized.
        """
        embedding = self.network(images)
        if self.method is None:
            return directions(embedding)
        return self.method.projection(self.method.head(embedding))


def load_projection(run: Path) -> Projection:
    """Rebuild what a pre-training run compares its views by, on the CPU.

    Args:
        run: The run directory.

    Raises:
        DistillError: No such run, a run without heads, or heads that do not fit.
    """
    return through_heads(load_trained(run), run)


def through_heads(network: EmbeddingNetwork, run: Path) -> Projection:
    """Put the heads of a pre-training run behind its backbone.

    Args:
        network: The run's backbone, on any device; the projection is on the same.
        run: The run directory.

    Raises:
        DistillError: A run without heads, or heads that do not fit.
    """
    if not has_heads(run):
        raise DistillError(
            f"{run} has no {HEADS}, so it has no projection: only a finished run of `distill "
            "pretrain` has one; use --layer backbone"
        )
    options = read_config(run, command="pretrain")
    config = updated(PretrainConfig(), options, source=f"{run}/config.yaml")
    method = build_method(config.method, network.embedding_dim)
    heads = read_state_dict(run / HEADS)
    problems = mismatches(shapes(method.state_dict()), shapes(heads))
    if problems:
        raise DistillError(
            f"{run / HEADS} does not fit {config.method.method} as config.yaml describes it: "
            f"{'; '.join(problems)}. Restore both from the same run, or use --layer backbone"
        )
    method.load_state_dict(heads, strict=False)  # what may be absent, `mismatches` allows
    return Projection(network, method.to(network.mean.device))


def has_heads(run: Path) -> bool:
    """Return whether a run directory holds the heads of pre-training."""
    return (run / HEADS).is_file()


@dataclass(frozen=True)
class EmbeddedViews:
    """Two views of N images; rows belong together, in an order that follows from the seed.

    Attributes:
        images: The first views, float32 N x 3 x S x S in [0, 1], on the CPU.
        first: The encoder's vectors of the first views, float32 N x D, on the CPU.
        second: The encoder's vectors of the second views, likewise.
    """

    images: Tensor
    first: Tensor
    second: Tensor


@torch.no_grad()
def embed_views(
    encode: Callable[[Tensor], Tensor],
    images: Images,
    indices: np.ndarray,
    *,
    image_size: int,
    augmentation: str,
    seed: int,
    device: torch.device,
    num_workers: int | None = None,
    description: str = "embed",
    on_bad_images: Callable[[Sequence[str]], None] | None = None,
) -> EmbeddedViews:
    """Embed two views of every image, in full float32.

    Args:
        encode: Float32 images in [0, 1] on `device` -> B x D.
        images: The set.
        indices: The images of the set to embed.
        image_size: S.
        augmentation: As `distill.data.views` knows them.
        seed: Of the order and of everything random in the views.
        device: Where `encode` computes.
        num_workers: Processes that load images; None: by cores and data.
        description: Shown before the progress bar.
        on_bad_images: Told of images that cannot be read, as they come; raises to end the pass.

    Raises:
        DistillError: An unknown augmentation, fewer than two images that can be read, or vectors
            that are not finite.
    """
    views = two_views(image_size, augmentation)
    shown = TrainingViews(
        images, indices, views.view, views.second_view, distortion=views.draw, seed=seed
    )

    def batches() -> Iterable[Batch]:
        return training_loader(
            shown,
            batch_size=images_per_pass(image_size, device),
            num_epochs=1,
            num_workers=num_workers,
        )

    pixels, first, second = [], [], []
    with full_float32(device), progress_bar(len(indices), description=description) as bar:
        for batch in guarded_batches(batches):
            if batch.bad and on_bad_images is not None:
                on_bad_images(batch.bad)
            bar.update(len(batch.index) + len(batch.bad))
            if not len(batch.index):
                continue
            assert batch.second_view is not None
            assert batch.distortion is not None
            # On the CPU, so that every device sees the same pixels.
            x = distort(batch.view, batch.distortion[:, 0])
            y = distort(batch.second_view, batch.distortion[:, 1])
            pixels.append(x)
            first.append(encode(x.to(device)).cpu())
            second.append(encode(y.to(device)).cpu())
    if sum(map(len, first)) < 2:
        raise DistillError(f"fewer than two of the chosen images of {images.name} can be read")
    found = EmbeddedViews(torch.cat(pixels), torch.cat(first), torch.cat(second))
    _require_finite(found)
    return found


def _require_finite(views: EmbeddedViews) -> None:
    finite = (views.first.isfinite() & views.second.isfinite()).all(dim=1)
    if not finite.all():
        raise DistillError(
            f"{int((~finite).sum())} of {len(finite)} embeddings are not finite; the network's "
            "weights are damaged or its training diverged"
        )


@dataclass(frozen=True)
class MeasureOptions(EvaluationOptions):
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
        suffix = "" if self.other_data is None else f"@{self.other_data}"
        return {prefix + name + suffix: value for name, value in described.items()}


@dataclass(frozen=True)
class _Subject:
    """A run that is ready to be measured."""

    path: Path
    evaluation: Subject
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
    embedder = subject.evaluation.embedder
    augmentation = options.augmentation or default_pretraining_augmentation(embedder.data)
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
    subject.evaluation.keep(EvaluationResult(replace(measurement, other_data=None).metrics()))
    return measurement


def _embedded(
    subject: _Subject,
    images: Images,
    indices: np.ndarray,
    augmentation: str,
    options: MeasureOptions,
) -> EmbeddedViews:
    embedder = subject.evaluation.embedder
    return embed_views(
        subject.encoder,
        images,
        indices,
        image_size=subject.encoder.network.input.image_size,
        augmentation=augmentation,
        seed=options.seed,
        device=embedder.device,
        num_workers=options.num_workers,
        description=str(subject.path),
        on_bad_images=embedder.bad_images,
    )


def _chosen_images(evaluation: Subject, options: MeasureOptions) -> tuple[Images, np.ndarray]:
    embedder = evaluation.embedder
    images, usable = embedder.data.train, embedder.train_index
    if embedder.data.val is not None and len(embedder.val_index):
        images, usable = embedder.data.val, embedder.val_index
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
    device = subject.evaluation.embedder.device
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
