"""What the evaluations of a trained network share: interface, options, opening, registry.

An evaluation is one file of this package: a subclass of `Evaluation` with its options, its `run`
and the meanings of its metrics, registered by name. `distill NAME`, `distill.evaluate(NAME, run)`,
the model card and the report read everything from there.

Metrics are written to metrics.json. `teacher_NAME` and `untrained_NAME` are those of the teacher
and of the student before training; `NAME@DATA` was measured on other data than the run's.
"""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from os.path import abspath, expanduser
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, get_origin, get_type_hints

from annotated_types import Ge, Le
from torch import nn

from distill import distributed
from distill.config import (
    AtLeast0,
    AtLeast1,
    CacheDtype,
    TeacherOptions,
    as_options,
    check_options,
)
from distill.data.sources import (
    BadImages,
    ImageData,
    data_or_default,
    open_data_object,
    open_images,
)
from distill.device import pick_device, pick_precision
from distill.embeddings.cache import NetworkCache, StoredEmbeddings, load_teacher_of
from distill.embeddings.embed import DatasetEmbedder
from distill.errors import DistillError
from distill.models.networks import EmbeddingNetwork, prepare_for_device
from distill.models.weights import read_description
from distill.registry import Registry
from distill.run_directory import add_metrics, read_config
from students.registry import build_student
from teachers.load import load_trained

Seed = Annotated[int, Ge(0), Le(2**31 - 1)]  # FAISS keeps seeds in a C int


@dataclass(frozen=True)
class EvaluationOptions:
    """Options that all evaluations share; every evaluation adds its own."""

    data: str | None = None
    """As for training; None: the data of the run, else $DISTILL_DATA, else digits."""
    student: str | None = None
    """Architecture, for a weights file that does not name it."""
    image_size: AtLeast1 | None = None
    """Side of the view in pixels, for a weights file that does not record it; None: 224."""
    output: Path | None = None
    """Directory whose metrics.json receives the metrics; None: the run directory, if it is one."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with a file that cannot be decoded."""
    max_bad_images: AtLeast0 | None = None
    """Largest number of skipped images; None: 1 % of the images, and at least ten."""
    num_workers: AtLeast0 | None = None
    """Processes that load images; None: by cores and data."""
    cache: Path | None = None
    """Folder for the embeddings; None: in the cache folder, $DISTILL_CACHE or ~/.cache/distill."""
    cache_dtype: CacheDtype = "fp16"
    """Data type of the stored embeddings."""


@dataclass(frozen=True)
class Metric:
    """A family of metrics in metrics.json.

    Attributes:
        pattern: Regular expression that whole names match.
        meaning: What the metric is, in words; a function of the match where the name has parts.
        unit: `share of 1`, `nats`, `seconds`, `count`, ...
        larger_is_better: None where neither direction is better.
    """

    pattern: str
    meaning: str | Callable[[re.Match[str]], str]
    unit: str = "share of 1"
    larger_is_better: bool | None = True


@dataclass(frozen=True)
class MetricMeaning:
    """Meaning of one metric in metrics.json; see `Metric`."""

    words: str
    unit: str
    larger_is_better: bool | None


@dataclass(frozen=True)
class Table:
    """A table of text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation.

    Attributes:
        metrics: For metrics.json, by name. None: the metric is not defined, and an earlier value is
            removed.
        tables: Details for people.
        notes: Remarks on the metrics, as sentences.
    """

    metrics: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """A trained network that is ready to be evaluated.

    Attributes:
        path: The run directory or weights file that it was loaded from.
        network: On the device of `embedder`.
        embedder: Images, device, precision.
        cache: The network's embeddings on disk.
        output: Directory whose metrics.json receives the metrics; None: they are not kept.
        other_data: Name of the data, when it is not what the run was trained on.
    """

    path: Path
    network: EmbeddingNetwork
    embedder: DatasetEmbedder
    cache: NetworkCache
    output: Path | None
    other_data: str | None = None

    def require_labels(self) -> None:
        """Refuse data on which no accuracy can be measured.

        Raises:
            DistillError: No validation images, no labels, or one class.
        """
        reason = self.embedder.unavailable_reason()
        if reason is not None:
            raise DistillError(reason)

    def embeddings(self) -> tuple[StoredEmbeddings, StoredEmbeddings]:
        """Return the embeddings of training and validation images, computed once, cached on disk.

        Several processes share the computation; afterwards only the first one continues.

        Raises:
            DistillError: The data has no labels (`require_labels`), or the disk is full.
        """
        self.require_labels()
        both = self.cache.stored("train"), self.cache.stored("val")
        distributed.release_others()
        return both

    def keep(self, result: EvaluationResult) -> EvaluationResult:
        """Add the metrics to metrics.json; return the result with the names they have there."""
        suffix = "" if self.other_data is None else f"@{self.other_data}"
        metrics = {name + suffix: value for name, value in result.metrics.items()}
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
            add_metrics(self.output, metrics)
        defined = {name: value for name, value in metrics.items() if value is not None}
        return replace(result, metrics=defined)


OptionsT = TypeVar("OptionsT", bound=EvaluationOptions)


class Evaluation(ABC, Generic[OptionsT]):
    """One way to evaluate a trained network; the docstring of a subclass heads its help.

    Attributes:
        name: As it is registered.
        summary: One line for lists.
        examples: Command lines with explanations, for the help.
        Options: A frozen dataclass; its fields are flags and keywords, their docstrings the help.
        METRICS: Meanings of the metrics.
        accepts_several_runs: Whether one call may name several runs.
        is_shared: Whether processes started by torchrun share the work.
        tables_show_metrics: Whether the tables show all metrics, which are then not printed again.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    examples: ClassVar[str]
    Options: ClassVar[type[EvaluationOptions]]
    METRICS: ClassVar[tuple[Metric, ...]]
    accepts_several_runs: ClassVar[bool] = False
    is_shared: ClassVar[bool] = False
    tables_show_metrics: ClassVar[bool] = False

    @classmethod
    def check(cls, options: OptionsT) -> None:
        """Refuse options that contradict each other, before anything is loaded.

        Raises:
            DistillError: One sentence.
        """

    @classmethod
    def open(cls, run_or_weights: Path, options: OptionsT, **objects: Any) -> Subject:
        """Load the network and open its images; see `open_evaluation`."""
        return open_evaluation(run_or_weights, options, **objects)

    @classmethod
    @abstractmethod
    def run(cls, subject: Subject, options: OptionsT) -> EvaluationResult:
        """Evaluate; the caller writes the metrics to metrics.json.

        Raises:
            DistillError: Data that this evaluation cannot use.
        """

    @classmethod
    def combine(cls, results: Sequence[EvaluationResult], options: OptionsT) -> EvaluationResult:
        """Return the result to show for several runs; only where `accepts_several_runs`."""
        (result,) = results
        return result


EVALUATIONS: Registry[type[Evaluation[Any]]] = Registry("evaluation", package="distill.evaluation")

_Class = TypeVar("_Class", bound=type[Evaluation[Any]])


def register_evaluation(name: str, *, summary: str, examples: str) -> Callable[[_Class], _Class]:
    """Register a subclass of `Evaluation` as `distill NAME` and `distill.evaluate(NAME, ...)`.

    Args:
        name: Of the command.
        summary: One line for lists.
        examples: Command lines with explanations, for the help.
    """

    def register(cls: _Class) -> _Class:
        cls.name, cls.summary, cls.examples = name, summary, examples
        EVALUATIONS.add(name, cls)
        return cls

    return register


def evaluate(
    name: str, run: Any, *, data: Any = None, module: nn.Module | None = None, **options: Any
) -> EvaluationResult:
    """Evaluate a trained network; the same as `distill NAME RUN`.

    Args:
        name: Of the evaluation: `nn`, `clusters`, `linear`, `voc`, `robustness`, `measure`, ...
        run: A run directory, a student.safetensors, other weights with `student=`, or what
            `distill.train` returned.
        data: As `--data`, or a torch `Dataset` or a pair of them
            (`distill.data.sources.open_data_object`).
        module: Your own module that was trained, which gets the weights of the run.
        **options: Fields of the evaluation's `Options`.

    Returns:
        The result; its `metrics` are also in metrics.json, where there is an output directory.

    Raises:
        DistillError: An unknown evaluation or option, no such run, weights that do not fit, data
            that cannot be evaluated on.
    """
    evaluation = EVALUATIONS.get(name)
    hints = get_type_hints(evaluation.Options)
    for option, value in options.items():
        if get_origin(hints.get(option)) is tuple and not isinstance(value, (list, tuple)):
            options[option] = (value,)
    opened = None
    if data is None or isinstance(data, (str, Path)):
        options["data"] = data
    else:
        opened = open_data_object(data, num_workers=options.get("num_workers"))
    given = as_options(evaluation.Options, options, source=f"distill.evaluate({name!r})")
    path = Path(getattr(run, "output", run))
    return run_evaluation(evaluation, [path], given, data=opened, module=module)


def run_evaluation(
    evaluation: type[Evaluation[OptionsT]],
    runs: Sequence[Path],
    options: OptionsT,
    *,
    data: ImageData | None = None,
    module: nn.Module | None = None,
) -> EvaluationResult:
    """Evaluate one run, or several where the evaluation accepts them; all are opened first.

    Args:
        evaluation: What to do.
        runs: Run directories or weights files.
        options: Of the evaluation.
        data: The images; None: those that `options.data` names.
        module: Your own module that was trained; None for a network that is built by name.

    Raises:
        DistillError: See `evaluate`.
    """
    if not runs:
        raise DistillError("no run was named; name at least one run directory or weights file")
    if len(runs) > 1 and options.output is not None:
        raise DistillError(
            f"--output {options.output} has room for the numbers of one run and {len(runs)} were "
            "given; leave it out"
        )
    check_options(options)
    evaluation.check(options)
    subjects = [evaluation.open(run, options, data=data, module=module) for run in runs]
    results = [subject.keep(evaluation.run(subject, options)) for subject in subjects]
    return evaluation.combine(results, options)


# Metrics that training itself writes, see `distill.training`.
_TRAINING_METRICS = (
    Metric("train_seconds", "seconds of training", "seconds", False),
    Metric("num_steps", "optimizer steps", "count", None),
    Metric("num_skipped_images", "images left out because they cannot be read", "count", False),
    Metric(
        "holdout_nn_accuracy",
        "share of the held-out training images that get their own class from the nearest training "
        "image by cosine",
    ),
)
_PREFIXES = {
    "teacher_": "the teacher: ",
    "untrained_": "the same network before training: ",
    "": "",
}


def describe_metric(name: str) -> MetricMeaning | None:
    """Return what a metric of metrics.json means; None for a name that no evaluation writes.

    Example:
        >>> describe_metric("teacher_nn_accuracy_k5@flowers").words
        'the teacher: share of the validation images that get their own class from a vote of the 5 nearest training images by cosine; on flowers'
        >>> describe_metric("num_steps").unit
        'count'
    """  # noqa: E501
    name, _, data = name.partition("@")
    for prefix, whose in _PREFIXES.items():
        for metric in _all_metrics() if name.startswith(prefix) else ():
            match = re.fullmatch(metric.pattern, name.removeprefix(prefix))
            if match is not None:
                words = metric.meaning if isinstance(metric.meaning, str) else metric.meaning(match)
                words = f"{whose}{words}{f'; on {data}' if data else ''}"
                return MetricMeaning(words, metric.unit, metric.larger_is_better)
    return None


def _all_metrics() -> Iterable[Metric]:
    for _, evaluation in EVALUATIONS.items():
        yield from evaluation.METRICS
    yield from _TRAINING_METRICS


def open_evaluation(
    run_or_weights: Path,
    options: EvaluationOptions,
    *,
    data: ImageData | None = None,
    module: nn.Module | None = None,
) -> Subject:
    """Load a trained network and open the images that it is evaluated on.

    Args:
        run_or_weights: A run directory, the .safetensors file that it holds, or other weights with
            `options.student`.
        options: Images and device; data and precision are those of the run by default.
        data: The images; None: those that `options.data` names.
        module: Your own module that was trained; None for a network that is built by name.

    Raises:
        DistillError: No such run, weights that do not fit, data or a device that is not there.
    """
    is_run = (run_or_weights / "config.yaml").exists()
    run_options = read_config(run_or_weights) if is_run else {}
    network = _load(run_or_weights, options, module)
    device = distributed.start(pick_device(options.device))
    bad_images = BadImages(options.on_bad_image, options.max_bad_images)
    is_named = data is not None or options.data not in (None, run_options.get("data"))
    if data is None:
        data = open_images(data_or_default(options.data or run_options.get("data")))
    embedder = DatasetEmbedder(
        data=data,
        train_index=bad_images.good_indices(data.train),
        val_index=bad_images.good_indices(data.val),
        device=device,
        precision=pick_precision(run_options.get("precision", "auto"), device),
        num_workers=options.num_workers,
        bad_images=bad_images,
    )
    network = prepare_for_device(network, device)
    cache = NetworkCache(
        network=network,
        what="student",
        embedder=embedder,
        bad_images=bad_images,
        folder=options.cache,
        dtype=options.cache_dtype,
    )
    output = options.output or (run_or_weights if is_run else None)
    is_other = is_run and is_named and data.name.lower() != _data_name(run_options.get("data"))
    other_data = data.name if is_other else None
    return Subject(run_or_weights, network, embedder, cache, output, other_data)


def _data_name(data: str | None) -> str:
    """Return the lowercase name of a dataset, independent of its folder."""
    if data is not None and data.startswith("dataset:"):  # a torch Dataset, by its class
        return data.rpartition(".")[2].lower()
    return Path(abspath(expanduser(data or "digits"))).name.lower()


def _load(
    run_or_weights: Path, options: EvaluationOptions, module: nn.Module | None
) -> EmbeddingNetwork:
    if options.student is None:
        if options.image_size is not None:
            raise DistillError(
                "--image-size goes with --student, since a run and a student.safetensors record "
                "their own; leave it out"
            )
        return load_trained(run_or_weights, module=module)
    if run_or_weights.is_dir() or read_description(run_or_weights) is not None:
        raise DistillError(
            f"{run_or_weights} records its own architecture and size; leave out --student"
        )
    return build_student(
        options.student, image_size=options.image_size, weights=run_or_weights
    ).eval()


@dataclass(frozen=True)
class ReferenceTeacherOptions(EvaluationOptions):
    """Options of an evaluation that also measures a teacher, for comparison."""

    teacher: str | None = None
    """Teacher to compare with; None: the one of the run, if it is a run."""
    teacher_weights: Path | None = None
    """Weights of the teacher; None: those of the run, or the published ones of --teacher."""
    teacher_image_size: AtLeast1 | None = None
    """Side of the teacher's view in pixels; None: that of the run, or the one --teacher was trained
    with."""


def reference_teacher(
    run_or_weights: Path, options: ReferenceTeacherOptions
) -> TeacherOptions | None:
    """Return how to load the teacher of the options, else the one of the run.

    Returns:
        None without either.

    Raises:
        DistillError: Weights or size of a teacher are given, and no teacher.
    """
    given = (options.teacher, options.teacher_weights, options.teacher_image_size)
    if options.teacher is not None:
        return TeacherOptions(*given)
    is_run = (run_or_weights / "config.yaml").exists()
    of_run = teacher_of_run(read_config(run_or_weights)) if is_run else None
    if of_run is None:
        if any(one is not None for one in given):
            raise DistillError(
                "--teacher-weights and --teacher-image-size need a teacher, and "
                f"{run_or_weights} names none; add --teacher"
            )
        return None
    return replace(
        of_run,
        teacher_weights=options.teacher_weights or of_run.teacher_weights,
        teacher_image_size=options.teacher_image_size or of_run.teacher_image_size,
        # A folder of the run's choice holds the embeddings of the run's images.
        teacher_cache=of_run.teacher_cache if options.data is None else None,
    )


def teacher_of_run(run_options: Mapping[str, Any]) -> TeacherOptions | None:
    """Return how to load a run's teacher; None for a run without one, such as pre-training."""
    given = {
        field.name: run_options[field.name]
        for field in fields(TeacherOptions)
        if run_options.get(field.name) is not None
    }
    if "teacher" not in given:
        return None
    for name in ("teacher_weights", "teacher_cache"):
        if name in given:
            given[name] = Path(given[name])
    teacher = TeacherOptions(**given)
    if run_options.get("teacher_view") == "student":
        return replace(teacher, teacher_image_size=run_options["image_size"])
    return teacher


def teacher_cache(teacher: TeacherOptions, embedder: DatasetEmbedder) -> NetworkCache:
    """Load a teacher; embeddings that training cached are used again.

    Raises:
        DistillError: A teacher that cannot be loaded.
    """
    return NetworkCache(
        network=prepare_for_device(load_teacher_of(teacher), embedder.device),
        what="teacher",
        embedder=embedder,
        # The student's pass has already refused them, where they are to be refused.
        bad_images=BadImages("skip", most=sys.maxsize),
        folder=teacher.teacher_cache,
        dtype=teacher.cache_dtype,
    )
