"""How much trained encoders compress: information in nats, lower bounds on Lipschitz constants.

Two views of pre-training of a set of images, which follow from a seed alone, are embedded as unit
vectors (`distill.evaluation.projection`); numbers are those of `distill.evaluation.information` and
`distill.evaluation.lipschitz`. What they are of is a `Definition`, which is printed and kept with
them: numbers compare where definitions agree.

Shapes: N images of side S, D width of the encoder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from distill.config import Concentration
from distill.data.distortions import distort
from distill.data.images import Images
from distill.data.loader import Batch, TrainingViews, training_loader
from distill.data.sources import default_pretraining_augmentation
from distill.data.views import two_views
from distill.data.workers import guarded_batches
from distill.device import full_float32, images_per_pass
from distill.errors import DistillError
from distill.evaluation.base import (
    Evaluation,
    EvaluationOptions,
    EvaluationResult,
    Metric,
    Seed,
    Subject,
    Table,
    open_evaluation,
    register_evaluation,
)
from distill.evaluation.information import CONTRAST, measure_information
from distill.evaluation.lipschitz import MIN_DISTANCE, lipschitz_bounds
from distill.evaluation.projection import Projection, has_heads, through_heads
from distill.evaluation.sweep import SweepPoint, plot_sweep, require_plot_path
from distill.losses.von_mises_fisher import entropy, mean_cosine, residual_constant
from distill.run_directory import read_config
from distill.terminal import progress_bar


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


def why_not_comparable(definitions: Sequence[Definition]) -> str | None:
    """Say in what the definitions of several runs differ; None when they agree."""
    differing = []
    for name in ("layer", "width", "image_size", "images", "num_images", "augmentation"):
        values = sorted({getattr(definition, name) for definition in definitions})
        if len(values) > 1:
            words = name.replace("_", " ").replace("num ", "number of ")
            differing.append(f"{words} ({', '.join(map(str, values))})")
    return f"these runs differ in {' and '.join(differing)}" if differing else None


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
    pair = two_views(image_size, augmentation)
    shown = TrainingViews(
        images, indices, pair.view, pair.second_view, distortion=pair.draw, seed=seed
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
    views = EmbeddedViews(torch.cat(pixels), torch.cat(first), torch.cat(second))
    finite = (views.first.isfinite() & views.second.isfinite()).all(dim=1)
    if not finite.all():
        raise DistillError(
            f"{int((~finite).sum())} of {len(finite)} embeddings are not finite; the network's "
            "weights are damaged or its training diverged"
        )
    return views


_COLUMNS = (
    ("residual", "residual_information"),
    ("I(Y;Z) >=", "information_y_z"),
    ("entropy_b", "entropy_b"),
    ("view KL", "view_kl"),
    ("cosine", "view_cosine"),
    ("lipschitz sampled", "lipschitz_sampled"),
    ("ascended", "lipschitz_ascended"),
    ("KL lipschitz sampled", "kl_lipschitz_sampled"),
    ("ascended", "kl_lipschitz_ascended"),
)


def _metric(name: str, words: str, unit: str, larger_is_better: bool | None = None) -> Metric:
    """Return the meaning of a number of the projection and of the backbone."""

    def meaning(match: re.Match[str]) -> str:
        return f"at the embedding: {words}" if match["backbone"] else words

    return Metric(f"(?P<backbone>backbone_)?{name}", meaning, unit, larger_is_better)


@dataclass(frozen=True)
class MeasureResult(EvaluationResult):
    """What was measured of one run.

    Attributes:
        path: As it was given.
        method: The run's method, `distilled` for CompRess, `weights` for a bare file.
        beta: The run's weight of the residual information; None without.
        definition: What the numbers are of.
        numbers: By name, without prefix.
    """

    path: Path = Path()
    method: str = ""
    beta: float | None = None
    definition: Definition | None = None
    numbers: dict[str, float] = field(default_factory=dict)


@register_evaluation(
    "measure",
    summary="measure how much trained networks compress",
    examples="""\
  distill measure runs/c-byol --data photos
      through the heads of pre-training
  distill measure runs/beta-* runs/simclr --data photos --plot sweep.svg
      a row for each run, and residual information and Lipschitz bound against beta
  distill measure runs/first --data photos --layer backbone
      the embedding itself, which a distilled student has too""",
)
class Measure(Evaluation["Measure.Options"]):
    """Measure what networks compress: information between two views, and Lipschitz bounds.

    Information is in nats; Lipschitz constants are bounded from below. The definition is fixed and
    printed: runs of one width and image size compare, whatever trained them.
    """

    accepts_several_runs = True
    tables_show_metrics = True
    METRICS = (
        _metric(
            "residual_information",
            "nats that one view of an image tells beyond the other",
            "nats",
            larger_is_better=False,
        ),
        _metric(
            "residual_constant",
            "the part of the bound on I(X;Z|Y) that does not depend on the network",
            "nats",
        ),
        _metric(
            "information_y_z",
            "lower bound in nats on what the embedding of one view tells of the other",
            "nats",
            larger_is_better=True,
        ),
        _metric("entropy_e", "entropy of the embedding's own distribution", "nats"),
        _metric("entropy_b", "cross-entropy of the embedding under the other view's", "nats"),
        _metric(
            "view_kl",
            "mean KL divergence of the distributions of two views of an image",
            "nats",
            larger_is_better=False,
        ),
        _metric(
            "view_cosine",
            "mean cosine of the embeddings of two views of an image",
            "cosine",
            larger_is_better=True,
        ),
        *(
            _metric(
                f"{prefix}lipschitz_{search}",
                f"largest slope {of} {over}, a lower bound",
                unit,
                larger_is_better=False,
            )
            for prefix, of, unit in (
                ("", "of the embedding", "1 / pixel range"),
                ("kl_", "of the KL divergence", "nats / pixel range"),
            )
            for search, over in (
                ("sampled", "over sampled pairs of images"),
                ("ascended", "that gradient ascent found"),
            )
        ),
        _metric("measure_definition", "what information and slopes are of", "text"),
    )

    @dataclass(frozen=True)
    class Options(EvaluationOptions):
        """How `distill measure` measures."""

        layer: Literal["projection", "backbone"] | None = None
        """What is measured, L2-normalized: the output of the heads of pre-training, or the
        embedding; None: the projection where the run has one."""
        kappa_e: Concentration = 1024.0
        """Concentration of e(z|x), the same for all runs."""
        kappa_b: Concentration = 10.0
        """Concentration of b(z|y), the same for all runs."""
        num_images: Annotated[int, Ge(2)] = 1024
        """Images to measure on, of the validation images where there are any."""
        augmentation: Literal["photo", "glyph"] | None = None
        """How the two views differ, as in pre-training; None: by data."""
        seed: Seed = 0
        """Picks images, views, samples, pairs and noise."""
        plot: Path | None = None
        """File, .png or .svg, for a plot of residual information and Lipschitz bound against
        beta."""

    @classmethod
    def check(cls, options: Options) -> None:
        """Refuse a plot that cannot be written."""
        if options.plot is not None:
            require_plot_path(options.plot)

    @classmethod
    def open(cls, run_or_weights: Path, options: Options, **objects: Any) -> Subject:
        """Open a run; that it lacks the wanted layer shows before others are measured."""
        subject = open_evaluation(run_or_weights, options, **objects)
        _encoder(subject, options)
        return subject

    @classmethod
    def run(cls, subject: Subject, options: Options) -> EvaluationResult:
        """Measure one run; names tell the backbone's numbers."""
        embedder = subject.embedder
        layer, encoder = _encoder(subject, options)
        augmentation = options.augmentation or default_pretraining_augmentation(embedder.data)
        images, usable = embedder.data.train, embedder.train_index
        if embedder.data.val is not None and len(embedder.val_index):
            images, usable = embedder.data.val, embedder.val_index
        if len(usable) < 2:
            raise DistillError(
                f"{images.name} has {len(usable)} images that can be read, at least 2 are needed"
            )
        number = min(options.num_images, len(usable))
        chosen = np.random.default_rng(options.seed).choice(usable, size=number, replace=False)
        views = embed_views(
            encoder,
            images,
            np.sort(chosen),
            image_size=encoder.network.input.image_size,
            augmentation=augmentation,
            seed=options.seed,
            device=embedder.device,
            num_workers=options.num_workers,
            description=str(subject.path),
            on_bad_images=embedder.bad_images,
        )
        definition = Definition(
            layer=layer,
            width=views.first.shape[1],
            image_size=views.images.shape[-1],
            images=images.name,
            num_images=len(views.images),
            augmentation=augmentation,
            seed=options.seed,
            kappa_e=options.kappa_e,
            kappa_b=options.kappa_b,
        )
        numbers = measure_information(
            views.first,
            views.second,
            kappa_e=options.kappa_e,
            kappa_b=options.kappa_b,
            seed=options.seed,
        )
        with full_float32(embedder.device):
            numbers |= lipschitz_bounds(
                encoder,
                views.images,
                kappa=options.kappa_e,
                device=embedder.device,
                batch_size=images_per_pass(definition.image_size, embedder.device),
                seed=options.seed,
            )
        prefix = "backbone_" if layer == "backbone" else ""
        described = {**numbers, "measure_definition": "; ".join(definition.lines())}
        metrics: dict[str, Any] = {prefix + name: value for name, value in described.items()}
        method, beta = _method_and_beta(subject.path)
        return MeasureResult(metrics, [], [], subject.path, method, beta, definition, numbers)

    @classmethod
    def combine(cls, results: Sequence[EvaluationResult], options: Options) -> EvaluationResult:
        """Return a row for each run under the definitions, and draw the plot."""
        measured = [result for result in results if isinstance(result, MeasureResult)]
        definitions = [one.definition for one in measured if one.definition is not None]
        title = "\n\n".join("\n".join(one.lines()) for one in dict.fromkeys(definitions))
        rows = [
            [
                str(one.path),
                one.method,
                "-" if one.beta is None else f"{one.beta:g}",
                *(f"{one.numbers[name]:.4g}" for _, name in _COLUMNS),
            ]
            for one in measured
        ]
        header = ["run", "method", "beta", *(words for words, _ in _COLUMNS)]
        problem, notes = why_not_comparable(definitions), []
        if problem is not None:
            notes.append(f"not comparable: {problem}")
        if options.plot is not None:
            points = [
                SweepPoint(
                    method=one.method,
                    beta=one.beta,
                    residual_information=one.numbers["residual_information"],
                    lipschitz=one.numbers["lipschitz_ascended"],
                )
                for one in measured
            ]
            plot_sweep(points, options.plot)
            notes.append(f"the plot is in {options.plot}")
        metrics = results[0].metrics if len(results) == 1 else {}
        return EvaluationResult(metrics, [Table(header, rows, title + "\n")], notes)


def _encoder(subject: Subject, options: Measure.Options) -> tuple[str, Projection]:
    """Return the layer to measure and the unit vectors there."""
    layer = options.layer or ("projection" if has_heads(subject.path) else "backbone")
    if layer == "backbone":
        return layer, Projection(subject.network)
    return layer, through_heads(subject.network, subject.path)


def _method_and_beta(path: Path) -> tuple[str, float | None]:
    if not (path / "config.yaml").exists():
        return "weights", None
    config = read_config(path)
    method = config.get("method", "compress")  # before there were baselines
    return "distilled" if method == "compress" else method, config.get("beta")
