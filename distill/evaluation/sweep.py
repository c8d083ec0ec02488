"""A sweep of beta in one picture: residual information and Lipschitz bound against beta."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from distill.errors import DistillError

SUFFIXES = (".png", ".svg")
# Okabe and Ito's colors, which people with any color vision tell apart, without the yellow.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_PANELS = (
    ("residual_information", "Residual information I(X;Z|Y)", "nats, without the constant"),
    (
        "lipschitz",
        "Lipschitz constant of f, lower bound",
        "|f(x) - f(x')| / |x - x'|, pixels in [0, 1]",
    ),
)


@dataclass(frozen=True)
class SweepPoint:
    """One run.

    Attributes:
        method: Its method; methods have a color each.
        beta: Its weight of the residual information; None without. Those without, or with 0, which
            has no place on a logarithmic axis, are drawn as dashed lines.
        residual_information: Nats, without the constant.
        lipschitz: Lower bound on the Lipschitz constant.
    """

    method: str
    beta: float | None
    residual_information: float
    lipschitz: float


def require_plot_path(path: Path) -> None:
    """Refuse a path that no plot can be written to.

    Raises:
        DistillError: A suffix other than .png and .svg, or a folder that is not there.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DistillError(f"--plot {path} must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise DistillError(f"--plot {path}: there is no folder {path.parent}; make it first")


def plot_sweep(points: Sequence[SweepPoint], path: Path) -> None:
    """Draw runs into a file, without a display.

    Args:
        points: At least one run.
        path: Ends in .png or .svg.

    Raises:
        DistillError: A path that cannot be written to.
    """
    require_plot_path(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(_PANELS))
    for axes, (name, title, unit) in zip(panels, _PANELS, strict=True):
        _draw(axes, points, name)
        axes.set(title=title, xlabel="beta, weight of the residual information", ylabel=unit)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise DistillError(f"--plot {path} cannot be written: {error.strerror}") from error


def _draw(axes: Any, points: Sequence[SweepPoint], name: str) -> None:
    for number, method in enumerate(dict.fromkeys(point.method for point in points)):
        mine = [point for point in points if point.method == method]
        style = {"color": _COLORS[number % len(_COLORS)]}
        _draw_curve(axes, method, mine, name, marker=_MARKERS[number % len(_MARKERS)], **style)
        _draw_levels(axes, method, mine, name, **style)
    if any(point.beta for point in points):
        axes.set_xscale("log")
    else:
        axes.set_xticks([])
    axes.set_ylim(0, 1.08 * max(getattr(point, name) for point in points) or 1)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curve(
    axes: Any, method: str, points: Sequence[SweepPoint], name: str, *, marker: str, color: str
) -> None:
    """Draw runs with a beta as marks, and a line through the mean of those that share one."""
    by_beta: dict[float, list[float]] = defaultdict(list)
    for point in points:
        if point.beta:
            by_beta[point.beta].append(getattr(point, name))
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
    axes: Any, method: str, points: Sequence[SweepPoint], name: str, *, color: str
) -> None:
    """Draw runs without a beta, and those with 0, as dashed lines at their mean."""
    for beta, label, dashes in ((None, method, (4, 2)), (0, f"{method}, beta 0", (1, 2))):
        values = [getattr(point, name) for point in points if point.beta == beta]
        if values:
            axes.axhline(mean(values), color=color, linestyle=(0, dashes), label=label)
