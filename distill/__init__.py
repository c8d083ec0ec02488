"""Distill frozen self-supervised vision networks into small students.

    import distill

    run = distill.train(teacher="timm:resnet50", student="resnet18", data="photos")
    print(run.metrics["nn_accuracy"])
    distill.evaluate("clusters", run, data="photos")

The calls are what the command line makes, with the same options: a keyword is a flag with
underscores, and what is not given (shown as `...`) follows the recipe or the data. `distill train
--help` says what each option means. The parts are here as well, for a loop of your own:
`AnchorQueue`, `anchor_kl`, `losses`, `embed`, the functions of the evaluations. All of it is
imported on first use, so that `import distill` needs neither a GPU nor any heavy package.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset

    from distill import losses
    from distill.comparison.compare import ComparisonResult
    from distill.config import CacheDtype, Precision
    from distill.embeddings.cache import CachedEmbeddings
    from distill.embeddings.embed import embed
    from distill.evaluation.base import EvaluationResult
    from distill.evaluation.clusters import cluster_alignment
    from distill.evaluation.linear import linear_accuracy
    from distill.evaluation.nn import nn_accuracy
    from distill.exports.export import Exported
    from distill.kernels.anchor_kl import anchor_kl
    from distill.losses.anchors import AnchorQueue
    from distill.models.networks import EmbeddingNetwork
    from distill.training.callbacks import Callback
    from distill.training.run import RunResult

    Data = Union[str, Path, Dataset, tuple[Dataset, Dataset], None]  # noqa: UP007

__version__ = "0.1.0"
__all__ = [
    "NOT_GIVEN",
    "AnchorQueue",
    "Callback",
    "EmbeddingNetwork",
    "anchor_kl",
    "cache",
    "cluster_alignment",
    "compare",
    "convert",
    "embed",
    "evaluate",
    "export",
    "linear_accuracy",
    "load_student",
    "losses",
    "measure",
    "nn_accuracy",
    "pretrain",
    "report",
    "train",
]

OnBadImage = Literal["fail", "skip"]


class _NotGiven:
    def __repr__(self) -> str:
        return "..."


NOT_GIVEN: Any = _NotGiven()
"""Default of an option that follows the recipe or the data."""


def train(
    *,
    method: Any = NOT_GIVEN,
    plugin: Sequence[str | Path] = NOT_GIVEN,
    callbacks: Sequence[Callback] = (),
    data_key: str = NOT_GIVEN,
    teacher: str | Path | nn.Module | None = NOT_GIVEN,
    teacher_weights: str | Path | None = NOT_GIVEN,
    teacher_image_size: int | None = NOT_GIVEN,
    teacher_batch_size: int | None = NOT_GIVEN,
    teacher_cache: str | Path | None = NOT_GIVEN,
    cache_dtype: CacheDtype = NOT_GIVEN,
    teacher_view: Literal["center", "student"] = NOT_GIVEN,
    student: str | nn.Module | None = NOT_GIVEN,
    student_weights: str | Path | None = NOT_GIVEN,
    student_init: Literal["random", "scaled"] | None = NOT_GIVEN,
    data: Data = NOT_GIVEN,
    on_bad_image: OnBadImage = NOT_GIVEN,
    max_bad_images: int | None = NOT_GIVEN,
    num_workers: int | None = NOT_GIVEN,
    image_size: int | None = NOT_GIVEN,
    holdout: float = NOT_GIVEN,
    augmentation: Literal["crop-flip", "crop", "none"] | None = NOT_GIVEN,
    min_crop_area: float | None = NOT_GIVEN,
    student_crops: int = NOT_GIVEN,
    epochs: int | None = NOT_GIVEN,
    batch_size: int | None = NOT_GIVEN,
    optimizer: Literal["sgd", "adamw", "muon", "lars"] = NOT_GIVEN,
    learning_rate: float | None = NOT_GIVEN,
    weight_decay: float = NOT_GIVEN,
    sgd_momentum: float = NOT_GIVEN,
    schedule: Literal["cosine", "step"] = NOT_GIVEN,
    milestones: Sequence[int] = NOT_GIVEN,
    decay_factor: float = NOT_GIVEN,
    warmup_epochs: float | None = NOT_GIVEN,
    clip_grad_norm: float | None = NOT_GIVEN,
    seed: int = NOT_GIVEN,
    deterministic: bool = NOT_GIVEN,
    device: str = NOT_GIVEN,
    precision: Precision = NOT_GIVEN,
    output: str | Path | None = NOT_GIVEN,
    resume: bool = NOT_GIVEN,
    recipe: str = NOT_GIVEN,
    nn_every: int | None = NOT_GIVEN,
    measure: Literal["all", "trained", "none"] = NOT_GIVEN,
    log_every: int = NOT_GIVEN,
    checkpoint_every: int = NOT_GIVEN,
    keep_every: int = NOT_GIVEN,
    on_failed_checkpoint: Literal["continue", "stop"] = NOT_GIVEN,
    **method_options: Any,
) -> RunResult:
    """Train a student; `distill train` with objects in place of names where you have them.

    Args:
        teacher: A name (`distill list teachers`), a run directory, or a module of your own that
            maps images (B, 3, H, W) to embeddings (B, D); wrap it with
            `distill.models.networks.wrap_module` to say its input size and normalization.
        student: A name (`distill list students`) or a module of your own, which is trained.
        data: A name, a folder, or a torch Dataset of (PIL image or uint8 tensor, label), or a pair
            of these for training and validation.
        data_key: Name of a data set object under which the teacher's embeddings are kept; without
            it all pixels are hashed.
        method: A name (`distill list methods`), or a method's options such as
            `distill.losses.CompRess.Options(temperature=0.05)`.
        callbacks: Told of steps, epochs, evaluations and the end, on the first rank.
        **method_options: A method's own options, for one that is named.

    Returns:
        `output`, the run directory; `metrics`; `student`, loaded when it is first looked at;
        `stopped_by`, the signal that ended the run early, if any.

    Raises:
        DistillError: A request that cannot be met; nothing was written then.
        NonFiniteLossError: The loss is not finite; the last checkpoint is intact.

    Example:
        >>> run = distill.train(
        ...     teacher="pixels", student="timm:test_resnet", data="digits", epochs=1,
        ...     measure="trained", output="runs/second",
        ... )
        >>> 0 <= run.metrics["nn_accuracy"] <= 1
        True
    """
    given = _given(locals(), "method_options")
    from distill.training.configuration import configure
    from distill.training.objects import split_objects
    from distill.training.train import train as train_run

    options, objects = split_objects(given)
    return train_run(configure(options), objects)


def pretrain(
    *,
    callbacks: Sequence[Callback] = (),
    data_key: str = NOT_GIVEN,
    arch: str = NOT_GIVEN,
    width: float = NOT_GIVEN,
    stem: Literal["imagenet", "small"] | None = NOT_GIVEN,
    data: Data = NOT_GIVEN,
    on_bad_image: OnBadImage = NOT_GIVEN,
    max_bad_images: int | None = NOT_GIVEN,
    num_workers: int | None = NOT_GIVEN,
    image_size: int | None = NOT_GIVEN,
    holdout: float = NOT_GIVEN,
    augmentation: Literal["photo", "glyph", "none"] | None = NOT_GIVEN,
    method: Literal["simclr", "c-simclr", "byol", "c-byol"] = NOT_GIVEN,
    beta: float | None = NOT_GIVEN,
    beta_schedule: Literal["constant", "linear", "cosine"] = NOT_GIVEN,
    beta_epochs: float | None = NOT_GIVEN,
    kappa_e: float | None = NOT_GIVEN,
    kappa_b: float = NOT_GIVEN,
    backward_encoder: Literal["cross-view", "same-view"] = NOT_GIVEN,
    regression_weight: float | None = NOT_GIVEN,
    target_momentum: float | None = NOT_GIVEN,
    hidden_dim: int = NOT_GIVEN,
    projection_dim: int = NOT_GIVEN,
    epochs: int | None = NOT_GIVEN,
    batch_size: int | None = NOT_GIVEN,
    optimizer: Literal["sgd", "adamw", "muon", "lars"] = NOT_GIVEN,
    learning_rate: float | None = NOT_GIVEN,
    weight_decay: float = NOT_GIVEN,
    sgd_momentum: float = NOT_GIVEN,
    schedule: Literal["cosine", "step"] = NOT_GIVEN,
    milestones: Sequence[int] = NOT_GIVEN,
    decay_factor: float = NOT_GIVEN,
    warmup_epochs: float | None = NOT_GIVEN,
    clip_grad_norm: float | None = NOT_GIVEN,
    accumulate: int = NOT_GIVEN,
    seed: int = NOT_GIVEN,
    deterministic: bool = NOT_GIVEN,
    device: str = NOT_GIVEN,
    precision: Precision = NOT_GIVEN,
    output: str | Path | None = NOT_GIVEN,
    resume: bool = NOT_GIVEN,
    recipe: str = NOT_GIVEN,
    nn_every: int | None = NOT_GIVEN,
    measure: Literal["all", "trained", "none"] = NOT_GIVEN,
    log_every: int = NOT_GIVEN,
    checkpoint_every: int = NOT_GIVEN,
    keep_every: int = NOT_GIVEN,
    on_failed_checkpoint: Literal["continue", "stop"] = NOT_GIVEN,
) -> RunResult:
    """Pre-train a backbone without labels; the same as `distill pretrain`.

    Args:
        data: As for `train`.
        data_key: As for `train`.
        callbacks: As for `train`.

    Returns:
        As `train`; `student` is the backbone.

    Raises:
        DistillError: A request that cannot be met; nothing was written then.
        NonFiniteLossError: The loss is not finite; the last checkpoint is intact.

    Example:
        >>> run = distill.pretrain(
        ...     method="simclr", width=0.125, data="digits", epochs=1, batch_size=256,
        ...     hidden_dim=16, projection_dim=16, measure="none", output="runs/simclr",
        ... )
        >>> run.stopped_by is None
        True
    """
    given = _given(locals())
    from distill.training.configuration import configure
    from distill.training.objects import split_objects
    from distill.training.pretrain import pretrain as pretrain_run

    options, objects = split_objects(given)
    return pretrain_run(configure(options, command="pretrain"), objects)


def cache(
    *,
    data_key: str = NOT_GIVEN,
    teacher: str | Path | nn.Module | None = NOT_GIVEN,
    teacher_weights: str | Path | None = NOT_GIVEN,
    teacher_image_size: int | None = NOT_GIVEN,
    teacher_batch_size: int | None = NOT_GIVEN,
    teacher_cache: str | Path | None = NOT_GIVEN,
    cache_dtype: CacheDtype = NOT_GIVEN,
    data: Data = NOT_GIVEN,
    on_bad_image: OnBadImage = NOT_GIVEN,
    max_bad_images: int | None = NOT_GIVEN,
    num_workers: int | None = NOT_GIVEN,
    split: Literal["all", "train", "val"] = NOT_GIVEN,
    seed: int = NOT_GIVEN,
    deterministic: bool = NOT_GIVEN,
    device: str = NOT_GIVEN,
    precision: Precision = NOT_GIVEN,
) -> dict[Literal["train", "val"], CachedEmbeddings]:
    """Keep a teacher's embeddings on disk for the training that follows; as `distill cache`.

    Args:
        teacher: As for `train`.
        data: As for `train`.
        data_key: As for `train`.

    Returns:
        By split, `train` or `val`: rows on disk, their folder and size, and what embedding took.

    Raises:
        DistillError: A request that cannot be met.

    Example:
        >>> made = distill.cache(teacher="pixels", data="digits")
        >>> made["train"].num_images, made["val"].num_images
        (1437, 360)
    """
    given = _given(locals())
    from distill.config import CacheConfig, updated
    from distill.embeddings.cache import cache as cache_embeddings
    from distill.training.objects import as_network, split_objects

    options, objects = split_objects(given)
    config = updated(CacheConfig(), options, source="distill.cache")
    teacher_network = None
    if objects.teacher is not None:
        side = config.teacher.teacher_image_size
        teacher_network = as_network(objects.teacher, image_size=side)
    return cache_embeddings(config, teacher=teacher_network, data=objects.data)


def evaluate(
    name: str,
    run: str | Path | RunResult,
    *,
    module: nn.Module | None = None,
    data: Data = NOT_GIVEN,
    student: str | None = NOT_GIVEN,
    image_size: int | None = NOT_GIVEN,
    output: str | Path | None = NOT_GIVEN,
    device: str = NOT_GIVEN,
    on_bad_image: OnBadImage = NOT_GIVEN,
    max_bad_images: int | None = NOT_GIVEN,
    num_workers: int | None = NOT_GIVEN,
    cache: str | Path | None = NOT_GIVEN,
    cache_dtype: CacheDtype = NOT_GIVEN,
    **evaluation_options: Any,
) -> EvaluationResult:
    """Evaluate a trained network; the same as `distill NAME RUN`.

    Args:
        name: `nn`, `clusters`, `linear`, `voc`, `robustness` or `measure`.
        run: What `train` returned, a run directory, a student.safetensors, or other weights with
            `student=`.
        module: Your own module that was trained, for a run directory of one.
        data: As for `train`; None: the data of the run.
        **evaluation_options: The evaluation's own options, as in `distill NAME --help`.

    Returns:
        `metrics`, which metrics.json of the run receives as well; `tables` and `notes` for people.

    Raises:
        DistillError: An unknown evaluation or option, or a request that cannot be met.

    Example:
        >>> result = distill.evaluate("nn", "runs/first", data="digits", k=[1, 5])
        >>> sorted(result.metrics)
        ['nn_accuracy', 'nn_accuracy_k5']
    """
    given = _given(locals(), "evaluation_options")
    from distill.evaluation.base import evaluate as evaluate_run

    given["module"] = module or getattr(run, "own_module", None)
    return evaluate_run(given.pop("name"), given.pop("run"), **given)


def measure(
    run: str | Path | RunResult,
    *,
    module: nn.Module | None = None,
    data: Data = NOT_GIVEN,
    student: str | None = NOT_GIVEN,
    image_size: int | None = NOT_GIVEN,
    output: str | Path | None = NOT_GIVEN,
    device: str = NOT_GIVEN,
    on_bad_image: OnBadImage = NOT_GIVEN,
    max_bad_images: int | None = NOT_GIVEN,
    num_workers: int | None = NOT_GIVEN,
    cache: str | Path | None = NOT_GIVEN,
    cache_dtype: CacheDtype = NOT_GIVEN,
    layer: Literal["projection", "backbone"] | None = NOT_GIVEN,
    kappa_e: float = NOT_GIVEN,
    kappa_b: float = NOT_GIVEN,
    num_images: int = NOT_GIVEN,
    augmentation: Literal["photo", "glyph"] | None = NOT_GIVEN,
    seed: int = NOT_GIVEN,
    plot: str | Path | None = NOT_GIVEN,
) -> EvaluationResult:
    """Measure how much a trained network compresses: `evaluate("measure", run, ...)`.

    Args:
        run: As for `evaluate`.
        module: As for `evaluate`.
        data: As for `evaluate`.

    Returns:
        As `evaluate`; information in nats. `measure_definition` among the metrics says what the
        names mean. All names start with `backbone_` when that layer was measured.

    Raises:
        DistillError: A request that cannot be met.

    Example:
        >>> result = distill.measure("runs/first", data="digits", num_images=64)
        >>> result.metrics["backbone_residual_information"] > 0
        True
    """
    given = _given(locals())
    from distill.evaluation.base import evaluate as evaluate_run

    given["module"] = module or getattr(run, "own_module", None)
    return evaluate_run("measure", given.pop("run"), **given)


def compare(
    grid: str | Path,
    *,
    output: str | Path | None = NOT_GIVEN,
    resume: bool = NOT_GIVEN,
    stop_after: float | None = NOT_GIVEN,
    jobs: int = NOT_GIVEN,
    only: str | None = NOT_GIVEN,
    retry_failed: bool = NOT_GIVEN,
    keep_checkpoints: bool = NOT_GIVEN,
    dry_run: bool = NOT_GIVEN,
    table: bool = NOT_GIVEN,
) -> ComparisonResult:
    r"""Compare methods on a grid of students, teachers and seeds; the same as `distill compare`.

    Args:
        grid: The YAML file of the grid, the directory of a comparison, or its comparison.json.

    Returns:
        The directory, the tables, and how many runs are open or failed.

    Raises:
        DistillError: A request that cannot be met.

    Example:
        >>> grid = Path("grid.yaml")
        >>> _ = grid.write_text(
        ...     "methods: {one queue: {}, regression: {method: reg}}\n"
        ...     "teachers: [pixels]\nstudents: [resnet18]\n"
        ... )
        >>> distill.compare(grid, dry_run=True).num_runs
        2
    """
    given = _given(locals())
    from distill.comparison.compare import CompareOptions
    from distill.comparison.compare import compare as compare_methods
    from distill.config import as_options

    path = Path(given.pop("grid"))
    return compare_methods(path, as_options(CompareOptions, given, source="distill.compare"))


def report(
    *runs: str | Path | RunResult,
    output: str | Path | None = NOT_GIVEN,
    data: str | None = NOT_GIVEN,
    teacher_weights: str | Path | None = NOT_GIVEN,
    class_names: str | Path | None = NOT_GIVEN,
    num_images: int = NOT_GIVEN,
    seed: int = NOT_GIVEN,
    device: str = NOT_GIVEN,
    on_bad_image: OnBadImage = NOT_GIVEN,
    num_workers: int | None = NOT_GIVEN,
) -> Path:
    """Write a page about a run, or about several side by side; the same as `distill report`.

    Args:
        *runs: Run directories, or what `train` returned.

    Returns:
        The HTML file.

    Raises:
        DistillError: A request that cannot be met.

    Example:
        >>> distill.report("runs/first", num_images=100).name
        'report.html'
    """
    given = _given(locals())
    from distill.config import as_options
    from distill.reports.report import ReportOptions
    from distill.reports.report import report as write_report

    paths = [_path(run) for run in given.pop("runs")]
    return write_report(paths, as_options(ReportOptions, given, source="distill.report"))


def export(
    run: str | Path | RunResult,
    format: Literal["onnx", "torch-export", "safetensors"],
    *,
    module: nn.Module | None = None,
    output: str | Path | None = NOT_GIVEN,
    l2_normalize: bool = NOT_GIVEN,
    overwrite: bool = NOT_GIVEN,
    data: Data = NOT_GIVEN,
    license: str = NOT_GIVEN,
    timing: bool = NOT_GIVEN,
) -> Exported:
    """Export the network of a finished run; the same as `distill export`.

    Args:
        run: A run directory, or what `train` returned.
        format: What is written.
        module: Your own module that was trained, for a run directory of one.
        data: Images to compare on, as for `train`; None: those of the run.

    Returns:
        Folder, files with size, SHA-256 and largest difference, and the model card.

    Raises:
        DistillError: A request that cannot be met; nothing was written then.

    Example:
        >>> exported = distill.export("runs/first", "safetensors", timing=False)
        >>> exported.card.name
        'model-card.md'
    """
    given = _given(locals())
    from distill.config import as_options
    from distill.exports.export import ExportOptions
    from distill.exports.export import export as export_run

    for name in ("run", "module"):
        del given[name]
    images = None
    if not isinstance(given.get("data"), (str, Path, type(None))):
        from distill.data.sources import open_data_object

        images = open_data_object(given.pop("data"))
    options = as_options(ExportOptions, given, source="distill.export")
    own = module or getattr(run, "own_module", None)
    return export_run(_path(run), options, module=own, data=images)


def convert(
    teacher: str, to: str | Path, *, teacher_weights: str | Path | None = None
) -> dict[str, Any]:
    """Write a teacher to one safetensors file, after which its original is not needed.

    Args:
        teacher: A registry name, timm:NAME, torchvision:NAME or a run directory.
        to: The .safetensors file; it must not exist.
        teacher_weights: File to read instead of the teacher's own source.

    Returns:
        The teacher's name, parameters, embedding width, and the file with its size in bytes.

    Raises:
        DistillError: A request that cannot be met.

    Example:
        >>> distill.convert("pixels", "pixels.safetensors")["embedding_dim"]
        192
    """
    given = _given(locals())
    from distill.config import as_options
    from teachers.convert import ConvertOptions
    from teachers.convert import convert as convert_teacher

    return convert_teacher(as_options(ConvertOptions, given, source="distill.convert"))


def load_student(
    run_or_weights: str | Path, *, module: nn.Module | None = None
) -> EmbeddingNetwork:
    """Load a trained network in evaluation mode; it takes uint8 images or floats in [0, 1].

    Args:
        run_or_weights: A run directory, a student.safetensors or a backbone.safetensors.
        module: Your own module that was trained, which gets the weights; None for a network that
            is built by name.

    Returns:
        A module that maps (B, 3, H, W) to (B, D) float32, on the CPU.

    Raises:
        DistillError: There is no such network, or it needs the module.

    Example:
        >>> import torch
        >>> student = distill.load_student("runs/first")
        >>> student(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 96])
    """
    from teachers.load import load_trained

    return load_trained(Path(run_or_weights), module=module)


def _given(arguments: dict[str, Any], others: str | None = None) -> dict[str, Any]:
    """Return the arguments of a call that were given, and let the toolkit's lines be seen.

    Args:
        arguments: By name.
        others: Name of the one that holds arguments by name itself, as **options does.
    """
    import logging

    if not logging.getLogger().handlers:
        from distill.terminal import log_to_console

        log_to_console()
    given = dict(arguments)
    given |= given.pop(others) if others else {}
    return {name: value for name, value in given.items() if value is not NOT_GIVEN}


def _path(run: str | Path | RunResult) -> Path:
    return Path(run) if isinstance(run, (str, Path)) else run.output


_PARTS = {
    "AnchorQueue": "distill.losses.anchors",
    "Callback": "distill.training.callbacks",
    "EmbeddingNetwork": "distill.models.networks",
    "anchor_kl": "distill.kernels.anchor_kl",
    "cluster_alignment": "distill.evaluation.clusters",
    "embed": "distill.embeddings.embed",
    "linear_accuracy": "distill.evaluation.linear",
    "nn_accuracy": "distill.evaluation.nn",
}
_REMOVED = {
    **{
        f"evaluate_{name}": f'distill.evaluate("{name}", run, ...).metrics'
        for name in ("nn", "clusters", "linear", "voc", "robustness")
    },
    "make_report": "distill.report(run, ...)",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a part on first use."""
        if name in _PARTS:
            return getattr(importlib.import_module(_PARTS[name]), name)
        if name == "losses":
            return importlib.import_module("distill.losses")
        if name in _REMOVED:
            raise AttributeError(f"distill.{name} is gone; call {_REMOVED[name]} instead")
        raise AttributeError(f"module 'distill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
