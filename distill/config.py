"""The options of training, pre-training and caching, and the one place that validates options.

Every option has one name: a flag (`--image-size`), a YAML key (`image_size`), a keyword of
`distill.train` and a line of `config.yaml` are the same. The dataclasses below group options for
the help. An option that is None follows the data: `distill.training.configuration` fills it in.

A field's annotation says what it takes, its docstring is the help of the flag:

    epochs: Annotated[int, Ge(1)] | None = None
    '''Passes over the training images.'''

Ranges are `annotated_types`; numbers are finite; a text among the metadata, as in
`Annotated[int, Ge(2), "BatchNorm needs two images"]`, is the reason that a refusal gives. Options
from YAML and keywords come through `updated` or `as_options`, which check names, types and ranges;
an object whose types are right already, as tyro makes it, through `check_options`. pydantic does
the checking.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml
from annotated_types import Ge, Gt, Le, Lt

from distill.errors import DistillError, nearest_match
from distill.parsing import read_yaml_file, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import TypeAdapter


Precision = Literal["auto", "fp32", "bf16"]
CacheDtype = Literal["fp16", "bf16", "fp32"]
AtLeast1 = Annotated[int, Ge(1)]
AtLeast0 = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Concentration = Annotated[float, Ge(1e-3), Le(10_000_000), "a concentration"]


@dataclass(frozen=True)
class TeacherOptions:
    """Which network teaches, and where its embeddings are kept."""

    teacher: str | None = None
    """Registry name (`distill list teachers`), timm:NAME, torchvision:NAME, a run directory or a
    converted .safetensors file."""
    teacher_weights: Path | None = None
    """Weights of the teacher: a safetensors, PyTorch or TensorFlow checkpoint, or an archive of the
    latter; None: the published ones, fetched on first use."""
    teacher_image_size: AtLeast1 | None = None
    """Side of the teacher's view in pixels; None: the side it was trained with."""
    teacher_batch_size: AtLeast1 | None = None
    """Images per forward pass of the teacher; None: by image size and device."""
    teacher_cache: Path | None = None
    """Folder that keeps the teacher's embeddings; None: in the cache folder, $DISTILL_CACHE or
    ~/.cache/distill."""
    cache_dtype: CacheDtype = "fp16"
    """Storage of the teacher's embeddings."""


@dataclass(frozen=True)
class NetworkOptions(TeacherOptions):
    """Which network teaches which."""

    teacher_view: Literal["center", "student"] = "center"
    """What the teacher sees: the center crop, embedded once; or the student's crop, embedded at
    every step."""
    student: str | None = None
    """Registry name (`distill list students`), timm:NAME or torchvision:NAME."""
    student_weights: Path | None = None
    """Weights to start the student from; None: random."""
    student_init: Literal["random", "scaled"] | None = None
    """How random weights start. random: as the architecture draws them; scaled: every layer then
    scaled to mean 0 and variance 1 over some training images; None: scaled for a student without
    normalization layers, such as AlexNet."""


@dataclass(frozen=True)
class DataOptions:
    """Which images."""

    data: str | None = None
    """`digits`, a torchvision dataset (CIFAR10, CIFAR100, STL10), a folder with train/ and val/
    class folders, any folder of images, or tar shards: `train-{000..146}.tar`, or a folder or URL
    where train*.tar and val*.tar lie; None: $DISTILL_DATA, else digits."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do about a file that cannot be decoded."""
    max_bad_images: AtLeast0 | None = None
    """How many may be skipped; None: a hundredth of the images, and at least ten."""
    num_workers: AtLeast0 | None = None
    """Processes that load images; None: by cores and data."""


@dataclass(frozen=True)
class ImageOptions(DataOptions):
    """Which images, and at which size."""

    image_size: AtLeast1 | None = None
    """Side of the trained network's view in pixels; None: 224 for folders, less for small sets."""
    holdout: Annotated[float, Ge(0), Le(0.5)] = 0.05
    """Share of the training images that is not trained on and serves the check between epochs."""


@dataclass(frozen=True)
class ViewOptions:
    """How the student sees the images."""

    augmentation: Literal["crop-flip", "crop", "none"] | None = None
    """crop-flip: random resized crop and flip, as published; crop: mild, no flip; none: center
    crop; None: by data."""
    min_crop_area: Annotated[float, Ge(1e-3), Le(1), "a share of the image's area"] | None = None
    """Least share of an image's area that a crop shows; None: 0.5 for crop-flip (published: 0.08),
    0.6 for crop."""
    student_crops: AtLeast1 = 1
    """Views of an image that the student sees in a step, each compared with what the teacher says
    of the image; the loss is their mean, and the first is what is enqueued."""


@dataclass(frozen=True)
class MethodChoice:
    """Which method; its own options are in a group of their own."""

    method: str = "compress"
    """compress, or a baseline (`distill list methods`)."""
    plugin: tuple[Path, ...] = ()
    """Python files that register further methods, imported first."""


@dataclass(frozen=True)
class OptimizationOptions:
    """Optimizer, schedule, length."""

    epochs: AtLeast1 | None = None
    """Passes over the training images; None: 100, below 5,000 images 20 (pre-training: 200)."""
    batch_size: Annotated[int, Ge(2), "BatchNorm needs two images"] | None = None
    """Images per step; None: a power of two from 32 to 256, by the number of images."""
    optimizer: Literal["sgd", "adamw", "muon", "lars"] = "muon"
    """Update rule; muon: orthogonalized steps of convolution kernels, adamw for the rest.
    Distillation was published with sgd, pre-training with lars. AlexNet, which has no BatchNorm,
    needs adamw or muon."""
    learning_rate: Positive | None = None
    """Peak learning rate; None: by optimizer, batch size and whether the student normalizes."""
    weight_decay: NonNegative = 1e-4
    """L2 (sgd, lars) or decoupled (adamw, muon) weight decay."""
    sgd_momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Momentum of sgd, lars and muon."""
    schedule: Literal["cosine", "step"] = "cosine"
    """How the learning rate falls."""
    milestones: tuple[int, ...] = (90, 120)
    """Epochs after which the step schedule multiplies the learning rate by decay_factor."""
    decay_factor: Share = 0.2
    """Factor of the step schedule."""
    warmup_epochs: NonNegative | None = None
    """Epochs of linear warm-up, fractions allowed; None: a twentieth of the epochs."""
    clip_grad_norm: Positive | None = None
    """Largest gradient norm; None: no clipping."""


@dataclass(frozen=True)
class ExecutionOptions:
    """How networks are run."""

    seed: Annotated[int, Ge(0), Le(2**63 - 1)] = 0
    """Seed of weights, order and views."""
    deterministic: bool = False
    """Use only algorithms that give the same bits every time; on a GPU slower. A CPU does anyhow,
    with the same number of threads."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "auto"
    """Forward and backward passes of the networks; auto: bf16 where the device computes in it."""


@dataclass(frozen=True)
class RunOptions(ExecutionOptions):
    """Where the run is kept and how it is executed."""

    output: Path | None = None
    """Run directory; None: under runs/, named after networks and data."""
    resume: bool = False
    """Continue the run in the output directory from its last checkpoint, or begin it there."""
    recipe: str = "default"
    """Defaults by name (`distill list recipes`) or from a YAML file; flags override them."""
    nn_every: AtLeast0 | None = None
    """Epochs between nearest-neighbor checks on held-out images; None: five per run; 0: off."""
    measure: Literal["all", "trained", "none"] = "all"
    """What is looked up and clustered around training. all: the teacher and the untrained network,
    which the trained one is compared with; trained: the trained one alone."""
    log_every: AtLeast1 = 10
    """Steps between lines of log.jsonl."""
    checkpoint_every: AtLeast1 = 1
    """Epochs between checkpoints; the newest two and the best are kept."""
    keep_every: AtLeast0 = 0
    """Epochs between checkpoints that are kept, too; 0: none."""
    on_failed_checkpoint: Literal["continue", "stop"] = "continue"
    """What to do when the disk refuses a checkpoint; those before it stay intact."""


@dataclass(frozen=True)
class SplitOptions:
    """Which part of the data."""

    split: Literal["all", "train", "val"] = "all"
    """Training images, validation images or both."""


@dataclass(frozen=True)
class CacheConfig:
    """Everything that decides which embeddings `distill cache` keeps."""

    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    images: DataOptions = field(default_factory=DataOptions)
    split: SplitOptions = field(default_factory=SplitOptions)
    run: ExecutionOptions = field(default_factory=ExecutionOptions)


@dataclass(frozen=True)
class BackboneOptions:
    """Which network is trained."""

    arch: str = "resnet18"
    """resnet18, resnet34, resnet50, resnet101 or resnet152."""
    width: float = 1.0
    """Factor of the width of every stage: 0.125, 0.25, 0.5, 1, 2 or 4."""
    stem: Literal["imagenet", "small"] | None = None
    """imagenet: 7 x 7, stride 2, max-pool; small: 3 x 3; None: small below 64 pixels."""


@dataclass(frozen=True)
class TwoViewOptions:
    """How the two views of an image differ."""

    augmentation: Literal["photo", "glyph", "none"] | None = None
    """photo: crop, flip, color, blur, solarize, asymmetric as published; glyph: affine, contrast,
    blur, for digits, letters and signs; None: by data."""


@dataclass(frozen=True)
class PretrainMethodChoice:
    """Which method; its own options are in a group of their own."""

    method: str = "c-byol"
    """simclr, byol, or with explicit compression c-simclr, c-byol."""


@dataclass(frozen=True)
class AccumulationOptions:
    """How a step is cut to fit memory."""

    accumulate: AtLeast1 = 1
    """Parts that a batch is cut into, one after the other, for one step; negatives and batch
    statistics then come from a part, not from the whole batch."""


# What to do instead of an option that is gone, as a flag, a YAML key or a keyword.
REMOVED_OPTIONS = {
    "predictor": "--predictor is gone: the student is trained through one linear layer, or through "
    "none with --projection-dim 0; --method simreg has an MLP; leave it out",
    "small_crops": "--small-crops is gone: it cost more than it brought; leave it out, or use "
    "--student-crops 2",
    "small_crop_size": "--small-crop-size is gone, as are small crops; leave it out",
    "num_teacher_views": "--num-teacher-views is gone: the teacher's center crop is embedded once; "
    "leave it out, or let the teacher see the student's crop with --teacher-view student",
    "ivf": "--ivf is gone: exact search was faster at every size that was measured; leave it out",
    "ivf_lists": "--ivf-lists is gone, as is --ivf; leave it out",
    "ivf_probes": "--ivf-probes is gone, as is --ivf; leave it out",
}

Config = TypeVar("Config")  # a frozen dataclass whose fields are groups of options
Group = TypeVar("Group", bound="DataclassInstance")  # one whose fields are options


def option_names(config: Any) -> list[str]:
    """Return the name of every option of a configuration, in the order of the help."""
    return [name for hints in _groups(config).values() for name in hints]


def updated(config: Config, options: Mapping[str, Any], *, source: str) -> Config:
    """Return `config` with `options` (flat: name -> value) replaced.

    Args:
        config: The configuration to start from.
        options: Values by option name; hyphens and underscores are the same. Lists become tuples
            and strings become paths where the option is one.
        source: Where the options come from, for the error message.

    Raises:
        DistillError: An unknown name (with the nearest), or a value of the wrong type or out of
            range; all such values at once.
    """
    groups = _groups(config)
    hints = {name: hint for group in groups.values() for name, hint in group.items()}
    values = _validated(options, hints, source)
    changed = {
        group: dataclasses.replace(
            getattr(config, group), **{name: values[name] for name in names if name in values}
        )
        for group, names in groups.items()
    }
    return type(config)(**changed)


def as_options(group: type[Group], options: Mapping[str, Any], *, source: str) -> Group:
    """Return a dataclass of options with `options` as in `updated` and its own defaults.

    Raises:
        DistillError: As `updated`, or an option without a default is missing.
    """
    values = _validated(options, _hints(group), source)
    missing = [
        one.name
        for one in fields(group)
        if one.name not in values and one.default is MISSING and one.default_factory is MISSING
    ]
    if missing:
        raise DistillError(f"{source} needs {' and '.join(missing)}")
    return group(**values)


def range_problems(options: Any) -> list[str]:
    """Return a sentence for each option that is out of its range.

    Args:
        options: A dataclass of options, or of groups of them; their types are right.
    """
    problems = []
    hints = _hints(type(options))
    for name, value in vars(options).items():
        if dataclasses.is_dataclass(value):
            problems += range_problems(value)
        elif (problem := _check(name, value, hints[name], source=None)[1]) is not None:
            problems.append(problem)
    return problems


def check_options(options: Any) -> None:
    """Refuse options that are out of their range.

    Args:
        options: As for `range_problems`.

    Raises:
        DistillError: Naming flag, value and range, of all of them at once.
    """
    problems = range_problems(options)
    if problems:
        raise DistillError("; ".join(problems))


def flattened(config: Any) -> dict[str, Any]:
    """Return every option by name as plain YAML values (paths as strings, tuples as lists)."""
    flat: dict[str, Any] = {}
    for group in fields(config):
        for name, value in vars(getattr(config, group.name)).items():
            flat[name] = _plain(value)
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def to_yaml(config: Any) -> str:
    """Return the configuration as flat YAML, in the order of the help."""
    return yaml.safe_dump(flattened(config), sort_keys=False)


def read_yaml(path: Path, *, kind: str) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        DistillError: When the file is missing, not YAML, or not a mapping.
    """
    try:
        content = read_yaml_file(path)
    except FileNotFoundError as error:
        raise DistillError(
            f"{kind} {path} cannot be read: there is no such file; name a YAML file"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DistillError(f"{kind} {path} cannot be read: {error}") from error
    except ValueError as error:
        raise DistillError(f"{kind} {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DistillError(f"{kind} {path} must be a mapping of option names to values")
    return content


def _hints(options_type: type) -> dict[str, Any]:
    return get_type_hints(options_type, include_extras=True)


def _groups(config: Any) -> dict[str, dict[str, Any]]:
    """Return the annotated options of every group of a configuration."""
    return {name: _hints(type(group)) for name, group in vars(config).items()}


def _validated(options: Mapping[str, Any], hints: dict[str, Any], source: str) -> dict[str, Any]:
    """Return options by name, with underscores, converted to their types."""
    given = {name.replace("-", "_"): value for name, value in options.items()}
    unknown = next((name for name in given if name not in hints), None)
    if unknown is not None:
        if unknown in REMOVED_OPTIONS:
            raise DistillError(f"{source}: {REMOVED_OPTIONS[unknown]}")
        nearest = nearest_match(unknown, hints)
        hint = f"; did you mean {nearest!r}?" if nearest else "; the command's --help lists them"
        raise DistillError(f"{source} has an unknown option {shown(unknown)}{hint}")
    values, problems = {}, []
    for name, value in given.items():
        values[name], problem = _check(name, value, hints[name], source)
        problems += [problem] if problem else []
    if problems:
        raise DistillError("; ".join(problems))
    return values


def _check(name: str, value: Any, hint: Any, source: str | None) -> tuple[Any, str | None]:
    """Return a value converted to an option's type, and what is wrong with it."""
    from pydantic import ValidationError

    try:
        return _adapter(hint).validate_python(value), None
    except ValidationError as error:
        kinds = {one["type"] for one in error.errors(include_url=False, include_context=False)}
    given = f"{source} gives {name} the value {shown(value)}"
    if kinds & _RANGE_ERRORS:
        must = "each must be" if isinstance(value, (list, tuple)) else "it must be"
        given = given if source else f"--{name.replace('_', '-')} is {shown(value)}"
        return value, f"{given}, {must} {_range(hint)}"
    return value, f"{given}; allowed: {', '.join(_described(hint))}"


_RANGE_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
_RANGE_ERRORS |= {"finite_number"}


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(_lenient(hint))


def _lenient(hint: Any) -> Any:
    """Return an annotation with what YAML and keywords may write for a type, and no more.

    pydantic's own leniency would take True and "64" for whole numbers and "yes" for True; its
    strictness refuses lists for tuples, texts for paths, and the text that YAML 1.1 makes of 1e-3.
    """
    from pydantic import AfterValidator, AllowInfNan, BeforeValidator, Strict

    if hint in (int, bool):
        return Annotated[hint, Strict()]
    if hint is float:
        return Annotated[float, AllowInfNan(False), BeforeValidator(_as_number)]
    if hint is str:
        return Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, Path) else v)]
    if hint is Path:
        return Annotated[Path, AfterValidator(Path.expanduser)]
    if get_origin(hint) is Annotated:
        return Annotated[(_lenient(hint.__origin__), *hint.__metadata__)]
    if get_origin(hint) is tuple:
        item, *rest = get_args(hint)
        return tuple[(_lenient(item), *rest)]  # type: ignore[misc]
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(map(_lenient, get_args(hint)))]  # noqa: UP007
    return hint


def _as_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a truth value is no number")
    return value


def _described(hint: Any) -> list[str]:
    """Say what an annotation allows."""
    if get_origin(hint) is Annotated:
        return _described(hint.__origin__)
    if get_origin(hint) in (Union, UnionType):
        return [words for alternative in get_args(hint) for words in _described(alternative)]
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    if get_origin(hint) is tuple:
        names = {int: "whole numbers", float: "numbers", str: "texts", Path: "paths"}
        item = get_args(hint)[0]
        return [f"a list of {names[getattr(item, '__origin__', item)]}"]
    names = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    names |= {bool: "true, false", type(None): "null"}
    return [names.get(hint, getattr(hint, "__name__", str(hint)))]


def _range(hint: Any) -> str:
    """Say the range of an annotation: "between 0 and 1", "positive and finite"."""
    if get_origin(hint) is not Annotated:
        described = [_range(inner) for inner in get_args(hint)]
        own = "finite" if hint is float else ""
        return next((words for words in described if words), own)
    limits = {type(one): one for one in hint.__metadata__}
    low, high = limits.get(Ge), limits.get(Le)
    if low and high:
        words = f"between {low.ge:,} and {high.le:,}"
    else:
        parts = [f"at least {low.ge:,}"] if low else []
        if Gt in limits:
            parts.append("positive" if limits[Gt].gt == 0 else f"above {limits[Gt].gt:,}")
        parts += [f"at most {high.le:,}"] if high else []
        parts += [f"below {limits[Lt].lt:,}"] if Lt in limits else []
        if hint.__origin__ is float and not high and Lt not in limits:
            parts.append("finite")
        words = " and ".join(parts)
    return f"{words} ({limits[str]})" if str in limits else words
