"""How much trained encoders compress: information in nats, lower bounds on Lipschitz constants.

Two views of each image, made as in pre-training and dependent on a seed alone, are embedded as unit
vectors (`distill.evaluation.projection`) and measured by `distill.evaluation.information` and
`distill.evaluation.lipschitz`. A `Definition` records what was measured; it is printed and kept
with the numbers, and numbers of several runs can be compared where their definitions agree.

`--plot` draws residual information and Lipschitz bound against beta, the weight of the residual
information in training.

Shapes: D width of the encoder.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from distill.config import Concentration
from distill.data.sources import default_pretraining_augmentation
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
from distill.evaluation.projection import Projection, embed_views, has_heads, through_heads
from distill.losses.von_mises_fisher import entropy, mean_cosine, residual_constant
from distill.run_directory import read_config


@dataclass(frozen=True)
class Definition:
    """What was measured; numbers of two runs are comparable where these agree.

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
        """Return the definition in words, one line per part."""
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
    """Return how the definitions of several runs differ; None when they agree."""
    differing = []
    for name in ("layer", "width", "image_size", "images", "num_images", "augmentation"):
        values = sorted({getattr(definition, name) for definition in definitions})
        if len(values) > 1:
            words = name.replace("_", " ").replace("num ", "number of ")
            differing.append(f"{words} ({', '.join(map(str, values))})")
    return f"these runs differ in {' and '.join(differing)}" if differing else None


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


@dataclass(frozen=True, kw_only=True)
class MeasureResult(EvaluationResult):
    """The numbers of one run, for the table and the plot of several.

    Attributes:
        path: As it was given.
        method: The run's method, `distilled` for CompRess, `weights` for a bare file.
        beta: The run's weight of the residual information; None without.
        definition: What was measured.
        numbers: By name, without prefix.
    """

    path: Path
    method: str
    beta: float | None
    definition: Definition
    numbers: dict[str, float]


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
    """Measure how much networks compress: information between two views, and Lipschitz bounds.

    Information is in nats; Lipschitz constants are bounded from below. The definition is printed:
    runs of the same width and image size can be compared, however they were trained.
    """

    accepts_several_runs = True
    tables_show_metrics = True
    METRICS = (
        _metric(
            "residual_information",
            "nats of the embedding of one view that the other view does not explain",
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
            "lower bound in nats on the information of the embedding about the other view",
            "nats",
            larger_is_better=True,
        ),
        _metric("entropy_e", "entropy of the distribution around the embedding", "nats"),
        _metric(
            "entropy_b",
            "cross-entropy of that distribution under the one around the other view",
            "nats",
        ),
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
        _metric("measure_definition", "images, layer and distributions that were measured", "text"),
    )

    @dataclass(frozen=True)
    class Options(EvaluationOptions):
        """Options of `distill measure`."""

        layer: Literal["projection", "backbone"] | None = None
        """What to measure, L2-normalized: the output of the heads of pre-training, or the
        embedding; None: the projection where the run has one."""
        kappa_e: Concentration = 1024.0
        """Concentration of e(z|x), the same for all runs."""
        kappa_b: Concentration = 10.0
        """Concentration of b(z|y), the same for all runs."""
        num_images: Annotated[int, Ge(2)] = 1024
        """Images to measure on, from the validation images where there are any."""
        augmentation: Literal["photo", "glyph"] | None = None
        """Augmentation of the two views, as in pre-training; None: by data."""
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
        """Open a run, and refuse one without the layer before any run is measured."""
        subject = open_evaluation(run_or_weights, options, **objects)
        _encoder(subject, options)
        return subject

    @classmethod
    def run(cls, subject: Subject, options: Options) -> EvaluationResult:
        """Measure one run; the backbone's numbers have a prefix."""
        embedder = subject.embedder
        layer, encoder = _encoder(subject, options)
        augmentation = options.augmentation or default_pretraining_augmentation(embedder.data)
        images, usable = embedder.data.train, embedder.train_index
        if embedder.data.val is not None and len(embedder.val_index):
            images, usable = embedder.data.val, embedder.val_index
        if len(usable) < 2:
            raise DistillError(
                f"{images.name} has {len(usable)} images that can be read, and 2 are needed; name "
                "other --data"
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
        return MeasureResult(
            metrics,
            path=subject.path,
            method=method,
            beta=beta,
            definition=definition,
            numbers=numbers,
        )

    @classmethod
    def combine(cls, results: Sequence[EvaluationResult], options: Options) -> EvaluationResult:
        """Return a table with a row for each run, below the definitions; draw the plot."""
        measured = [result for result in results if isinstance(result, MeasureResult)]
        definitions = [one.definition for one in measured]
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
            plot_sweep(measured, options.plot)
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


PLOT_SUFFIXES = (".png", ".svg")
# Okabe and Ito's colors, which people with any color vision tell apart, without the yellow.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_PLOT_PANELS = (
    ("residual_information", "Residual information I(X;Z|Y)", "nats, without the constant"),
    (
        "lipschitz_ascended",
        "Lipschitz constant of f, lower bound",
        "|f(x) - f(x')| / |x - x'|, pixels in [0, 1]",
    ),
)


def require_plot_path(path: Path) -> None:
    """Refuse a path that no plot can be written to.

    Raises:
        DistillError: A suffix other than .png and .svg, or a folder that is not there.
    """
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise DistillError(f"--plot {path} must end in {' or '.join(PLOT_SUFFIXES)}")
    if not path.parent.is_dir():
        raise DistillError(f"--plot {path}: there is no folder {path.parent}; make it first")


def plot_sweep(results: Sequence[MeasureResult], path: Path) -> None:
    """Plot residual information and Lipschitz bound against beta.

    Runs without a beta, or with 0, which has no place on a logarithmic axis, are dashed lines.

    Args:
        results: Of at least one run.
        path: Ends in .png or .svg.

    Raises:
        DistillError: A path that cannot be written to.
    """
    require_plot_path(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(_PLOT_PANELS))
    for axes, (name, title, unit) in zip(panels, _PLOT_PANELS, strict=True):
        _draw(axes, results, name)
        axes.set(title=title, xlabel="beta, weight of the residual information", ylabel=unit)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise DistillError(f"--plot {path} cannot be written: {error.strerror}") from error


def _draw(axes: Any, results: Sequence[MeasureResult], name: str) -> None:
    for number, method in enumerate(dict.fromkeys(result.method for result in results)):
        mine = [result for result in results if result.method == method]
        style = {"color": _COLORS[number % len(_COLORS)]}
        _draw_curve(axes, method, mine, name, marker=_MARKERS[number % len(_MARKERS)], **style)
        _draw_levels(axes, method, mine, name, **style)
    if any(result.beta for result in results):
        axes.set_xscale("log")
    else:
        axes.set_xticks([])
    axes.set_ylim(0, 1.08 * max(result.numbers[name] for result in results) or 1)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curve(
    axes: Any, method: str, results: Sequence[MeasureResult], name: str, *, marker: str, color: str
) -> None:
    """Draw runs with a beta as markers, joined by a line through the mean of each beta."""
    by_beta: dict[float, list[float]] = defaultdict(list)
    for result in results:
        if result.beta:
            by_beta[result.beta].append(result.numbers[name])
    betas = sorted(by_beta)
    if not betas:
        return
    means = [mean(by_beta[beta]) for beta in betas]
    axes.plot(betas, means, marker=marker, color=color, label=method)
    for beta in betas:
        if len(by_beta[beta]) > 1:
            values = by_beta[beta]
            axes.plot([beta] * len(values), values, marker, color=color, alpha=0.4, markersize=4)


def _draw_levels(
    axes: Any, method: str, results: Sequence[MeasureResult], name: str, *, color: str
) -> None:
    """Draw runs without a beta, and those with 0, as dashed lines at their mean."""
    for beta, label, dashes in ((None, method, (4, 2)), (0, f"{method}, beta 0", (1, 2))):
        values = [result.numbers[name] for result in results if result.beta == beta]
        if values:
            axes.axhline(mean(values), color=color, linestyle=(0, dashes), label=label)
