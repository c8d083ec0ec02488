"""Distill frozen self-supervised vision networks into small students that see alike.

The calls below are what the command line makes; see the README for the ten-line version. They are
imported on first use, so that `import distill` needs neither a GPU nor any heavy package.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from distill.comparison.compare import ComparisonResult
    from distill.embeddings.cache import CachedSplit
    from distill.exports.export import Exported
    from distill.models.networks import EmbeddingNetwork
    from distill.training.fitting import RunResult

__version__ = "0.1.0"
__all__ = [
    "cache",
    "compare",
    "convert",
    "evaluate_clusters",
    "evaluate_linear",
    "evaluate_nn",
    "evaluate_robustness",
    "evaluate_voc",
    "export",
    "load_student",
    "make_report",
    "measure",
    "pretrain",
    "train",
]


def train(**options: Any) -> RunResult:
    """Train a student; the same options and defaults as `distill train`.

    Args:
        **options: Any flag of `distill train --help` with underscores, for example
            `teacher="timm:resnet50", student="resnet18", data="photos", image_size=128`.

    Returns:
        The run directory, its metrics, and the signal that stopped it early, if any.

    Raises:
        DistillError: A request that cannot be met; nothing was written then.
        NonFiniteLossError: The loss is not finite; the last checkpoint is intact.
    """
    from distill.training.configuration import configure
    from distill.training.train import train as train_job

    return train_job(configure(options))


def pretrain(**options: Any) -> RunResult:
    """Pre-train a backbone without labels; the same options and defaults as `distill pretrain`.

    Args:
        **options: Any flag of `distill pretrain --help` with underscores, for example
            `method="c-byol", arch="resnet18", data="photos", beta=0.1`.

    Returns:
        The run directory, its metrics, and the signal that stopped it early, if any.

    Raises:
        DistillError: A request that cannot be met; nothing was written then.
        NonFiniteLossError: The loss is not finite; the last checkpoint is intact.
    """
    from distill.training.configuration import configure
    from distill.training.pretrain import pretrain as pretrain_job

    return pretrain_job(configure(options, command="pretrain"))


def cache(**options: Any) -> list[CachedSplit]:
    """Keep a teacher's embeddings on disk; the same options and defaults as `distill cache`.

    Args:
        **options: Any flag of `distill cache --help` with underscores, for example
            `teacher="timm:resnet50", data="photos"`.

    Returns:
        The caches, with folder, size and what embedding took.

    Raises:
        DistillError: A request that cannot be met.
    """
    from distill.config import CacheConfig, updated
    from distill.embeddings.cache import cache as cache_job

    return cache_job(updated(CacheConfig(), options, source="distill.cache"))


def compare(grid: str | Path, **options: Any) -> ComparisonResult:
    """Compare methods on a grid; the same options and defaults as `distill compare`.

    Args:
        grid: The YAML file of the grid, the directory of a comparison, or its comparison.json.
        **options: Any flag of `distill compare --help` with underscores.

    Returns:
        The directory, the tables, and how many runs are open or failed.

    Raises:
        DistillError: A request that cannot be met.
    """
    from distill.comparison.compare import CompareOptions
    from distill.comparison.compare import compare as make_comparison
    from distill.config import as_options

    return make_comparison(
        Path(grid), as_options(CompareOptions, options, source="distill.compare")
    )


def convert(teacher: str, to: str | Path, *, weights: str | Path | None = None) -> dict[str, Any]:
    """Write a teacher to one safetensors file, after which its original is not needed.

    Args:
        teacher: A registry name, timm:NAME, torchvision:NAME or a run directory.
        to: The .safetensors file; it must not exist.
        weights: File to read instead of the teacher's own source.

    Returns:
        The teacher's name, parameters, embedding width, and the file with its size in bytes.

    Raises:
        DistillError: A request that cannot be met.
    """
    from teachers.convert import ConvertOptions
    from teachers.convert import convert as convert_job

    file = None if weights is None else Path(weights)
    return convert_job(ConvertOptions(teacher, Path(to), file))


def evaluate_nn(run_or_weights: str | Path, **options: Any) -> dict[str, Any]:
    """Measure a student's nearest-neighbor accuracy; the same options as `distill nn`.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with `student`.
        **options: Any flag of `distill nn --help` with underscores, except `per_class` and
            `confusion`; `k` may be one number.

    Returns:
        What was measured, by name, as fractions of 1.

    Raises:
        DistillError: A request that cannot be met.
    """
    from distill.evaluation.base import evaluate

    return evaluate("nn", run_or_weights, **options).metrics


def evaluate_clusters(run_or_weights: str | Path, **options: Any) -> dict[str, Any]:
    """Measure a student's cluster alignment; the same options as `distill clusters`.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with `student`.
        **options: Any flag of `distill clusters --help` with underscores, except `per_cluster`.

    Returns:
        What was measured, by name, as fractions of 1.

    Raises:
        DistillError: A request that cannot be met.
    """
    from distill.evaluation.base import evaluate

    return evaluate("clusters", run_or_weights, **options).metrics


def evaluate_linear(run_or_weights: str | Path, **options: Any) -> dict[str, Any]:
    """Measure linear classifiers on a student's embeddings; the same options as `distill linear`.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with `student`.
        **options: Any flag of `distill linear --help` with underscores, except `per_class`.

    Returns:
        What was measured, by name, as fractions of 1.

    Raises:
        DistillError: A request that cannot be met.
    """
    from distill.config import as_options
    from distill.evaluation.linear import LinearOptions
    from distill.evaluation.linear import evaluate_linear as evaluate_job

    given = as_options(LinearOptions, options, source="distill.evaluate_linear")
    return evaluate_job(Path(run_or_weights), given).metrics


def evaluate_voc(run_or_weights: str | Path, **options: Any) -> dict[str, Any]:
    """Transfer a student to a dataset in PASCAL VOC layout; the same options as `distill voc`.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with `student`.
        **options: Any flag of `distill voc --help` with underscores; `data` is needed.

    Returns:
        What was measured, by name, as fractions of 1, and each class's average precisions.

    Raises:
        DistillError: A request that cannot be met.
        NonFiniteLossError: The detector's loss is not finite.
    """
    from distill.config import as_options
    from distill.evaluation.voc import VocOptions, measure_voc

    given = as_options(VocOptions, options, source="distill.evaluate_voc")
    return measure_voc(Path(run_or_weights), given).metrics()


def evaluate_robustness(run_or_weights: str | Path, **options: Any) -> dict[str, Any]:
    """Measure a student on corrupted and on other images; the same options as `distill robustness`.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with `student`.
        **options: Any flag of `distill robustness --help` with underscores.

    Returns:
        What was measured, by name, as fractions of 1; `robustness_definition` says on what.

    Raises:
        DistillError: A request that cannot be met.
    """
    from distill.config import as_options
    from distill.evaluation.robustness import RobustnessOptions
    from distill.evaluation.robustness import evaluate_robustness as evaluate_job

    given = as_options(RobustnessOptions, options, source="distill.evaluate_robustness")
    return evaluate_job(Path(run_or_weights), given).metrics


def measure(run_or_weights: str | Path, **options: Any) -> dict[str, Any]:
    """Measure how much a trained network compresses; the same options as `distill measure`.

    Args:
        run_or_weights: A run directory, a student.safetensors or backbone.safetensors, or other
            weights with `student`.
        **options: Any flag of `distill measure --help` with underscores, except `plot`.

    Returns:
        What was added to metrics.json, by name, information in nats; `measure_definition` says
        what the names mean. All names start with `backbone_` when that layer was measured.

    Raises:
        DistillError: A request that cannot be met.
    """
    from distill.config import as_options
    from distill.evaluation.measure import MeasureOptions
    from distill.evaluation.measure import measure as measure_job

    given = as_options(MeasureOptions, options, source="distill.measure")
    return measure_job([Path(run_or_weights)], given)[0].metrics()


def export(run: str | Path, format: str, **options: Any) -> Exported:
    """Export the network of a finished run; the same options as `distill export`.

    Args:
        run: A run directory of `distill train` or `distill pretrain`.
        format: `onnx`, `torch-export` or `safetensors`.
        **options: Any flag of `distill export --help` with underscores.

    Returns:
        Folder, files with size, SHA-256 and largest difference, and the model card.

    Raises:
        DistillError: A request that cannot be met; nothing was written then.
    """
    from distill.config import as_options
    from distill.exports.export import ExportOptions
    from distill.exports.export import export as export_job

    given = {"format": format, **options}
    return export_job(Path(run), as_options(ExportOptions, given, source="distill.export"))


def make_report(*runs: str | Path, **options: Any) -> Path:
    """Write a page about a run, or about several side by side; the same as `distill report`.

    Args:
        *runs: Run directories.
        **options: Any flag of `distill report --help` with underscores.

    Returns:
        The HTML file.

    Raises:
        DistillError: A request that cannot be met.
    """
    from distill.config import as_options
    from distill.reports.report import ReportOptions, report

    given = as_options(ReportOptions, options, source="distill.make_report")
    return report([Path(run) for run in runs], given)


def load_student(
    run_or_weights: str | Path, *, module: nn.Module | None = None
) -> EmbeddingNetwork:
    """Load a trained network in evaluation mode; it takes uint8 images or floats in [0, 1].

    Args:
        run_or_weights: A run directory, a student.safetensors or a backbone.safetensors.
        module: Your own module that was trained, which gets the weights; None for a network that
            is built by name.

    Raises:
        DistillError: There is no such network, or it needs the module.
    """
    from teachers.load import load_trained

    return load_trained(Path(run_or_weights), module=module)
