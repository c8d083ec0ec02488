"""The interface of a distillation method, and the registry of all of them.

A method is one file: its mathematics as a `DistillationLoss`, its options with their published
defaults, and its registration. Files from outside the package take part in the same way
(`load_plugins`). Losses stand alone: `loss(teacher, student)` in anybody's training loop.

By default a loss is given the rows of all ranks and does the same on every rank, so that heads,
BatchNorm in heads and memories need to know nothing of ranks.

Shapes: B rows of all ranks, b rows of this rank, Dt and Ds widths of teacher and student.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.config import Positive
from distill.errors import DistillError
from distill.registry import Registry

if TYPE_CHECKING:
    from typing_extensions import Self

Loss = TypeVar("Loss", bound="type[DistillationLoss]")
ENTRY_POINTS = "distill.methods"


class Rows(Protocol):
    """Embeddings of one view of every training image, by index."""

    @property
    def embedding_dim(self) -> int:
        """D."""
        ...

    def rows(self, index: np.ndarray) -> Tensor:
        """Return the embeddings (B, D) float32 on the CPU of the images `index`, int64 (B,)."""
        ...


class MethodFacts(NamedTuple):
    """What the options of a method may follow.

    Attributes:
        num_images: Images that are trained on.
        num_steps: Optimizer steps of the whole run.
        teacher_view: `center` for kept embeddings of the teacher's own view, or `student`.
        teacher_dim: Dt; 0 without a teacher.
        published_projection_dim: Width of the layer that the published recipe trains this student
            through; None for none, and with other recipes.
    """

    num_images: int
    num_steps: int
    teacher_view: str = "center"
    teacher_dim: int = 0
    published_projection_dim: int | None = None


class MemoryNeed(NamedTuple):
    """Memory that a method takes for what it remembers, with words for the refusal.

    Attributes:
        num_bytes: In every process on its device or, `once`, on the first one's CPU for a time.
        what: What takes it, such as "a queue of 128,000 anchors".
        remedy: What makes it smaller.
        once: See `num_bytes`.
    """

    num_bytes: int
    what: str
    remedy: str
    once: bool = False


@dataclass(frozen=True)
class BuildContext:
    """What a loss is built from, beside its options.

    Attributes:
        student_dim: Ds, of the student's embedding.
        teacher_dim: Dt; 0 without a teacher.
        images: int64 (N,), positions in the full training set of the images that are trained on.
        num_positions: Images of the full training set.
        num_classes: Of its labels; 0 without labels.
        num_unlabeled: How many of `images` have no label.
        data_name: What to call the data in messages.
        teacher_rows: Kept embeddings of the teacher's own view of each of `images`; None for a
            teacher that sees the student's view.
        device: Where the loss is to lie.
        seed: Of everything that the loss draws, but for its layers (torch's global generator).
        rank: Of this process.
        num_ranks: Processes that train together.
        is_resumed: Whether `load_state_dict` follows, so that nothing costly need be computed.
        kmeans: Clusters rows (N, D) float32 into a number of clusters; returns int64 (N,).
    """

    student_dim: int
    teacher_dim: int = 0
    images: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    num_positions: int = 0
    num_classes: int = 0
    num_unlabeled: int = 0
    data_name: str = "the data"
    teacher_rows: Rows | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    rank: int = 0
    num_ranks: int = 1
    is_resumed: bool = False
    kmeans: Callable[[np.ndarray, int], np.ndarray] | None = None


@dataclass(frozen=True)
class NoOptions:
    """A method without options."""


@dataclass(frozen=True)
class BaselineOptions:
    """What every baseline has."""

    loss_weight: Positive = 1.0
    """Factor of the loss."""


class DistillationLoss(nn.Module):
    """A distillation method: a loss between the teacher's and the student's embeddings of a batch.

    A subclass overrides `forward` and, where it has options, `Options` and `build`. Heads are its
    parameters: they are trained with the student and dropped afterwards. What it remembers between
    steps is in its `state_dict`, random draws included, so that a run that is continued goes on as
    if it had not stopped.

    Attributes:
        Options: Frozen dataclass: flags, YAML keys, help (the docstring under each field) and
            ranges (`Annotated[float, Gt(0)]`) are made from it. The loop multiplies the loss by
            `loss_weight`, where it is one of the options (`BaselineOptions`).
        name: As registered.
        summary: As registered.
        teacher: As registered.
        takes_views: Whether `forward` is given a sequence of the student's views instead of one.
        takes_own_rows: Whether `forward` is given the student's rows of this rank alone, with
            `row_counts`, instead of those of all ranks.
        projection: Layers after the student that are run with it, in its precision and by its
            momentum copy; the loss sees what comes out. None for none. A loss with a projection has
            no other parameters.
        momentum: m of a momentum copy of the student, whose embedding of the first view `forward`
            is given as `key`. None for no copy.
        wants_prefill: Whether `fill` is called with batches before the first step.
    """

    Options: ClassVar[type[Any]] = NoOptions
    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    teacher: ClassVar[str] = "every step"
    takes_views: ClassVar[bool] = False
    takes_own_rows: ClassVar[bool] = False
    momentum: float | None = None
    wants_prefill: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.projection: nn.Module | None = None

    @classmethod
    def resolve(cls, options: Any, facts: MethodFacts) -> Any:
        """Return `options` with every None that follows the data filled in."""
        return options

    @classmethod
    def contradictions(cls, options: Any, config: Any) -> list[str]:
        """Return what contradicts in a configuration as it was asked for, a sentence each.

        Args:
            options: The method's own.
            config: The whole `TrainConfig`.
        """
        return []

    @classmethod
    def require_possible(cls, options: Any, context: BuildContext) -> None:
        """Refuse resolved options that do not fit the data or the networks; builds nothing.

        Raises:
            DistillError: Naming flag, value and remedy.
        """

    @classmethod
    def memory_needed(cls, options: Any, context: BuildContext) -> MemoryNeed | None:
        """Return what resolved options take; None for nothing to speak of."""
        return None

    @classmethod
    def build(cls, options: Any, context: BuildContext) -> Self:
        """Build the loss from resolved options, its layers random (torch's global generator)."""
        return cls()

    def forward(
        self,
        teacher: Tensor,
        student: Tensor,
        index: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor | None:
        """Return the loss of a batch.

        Args:
            teacher: (B, Dt) float, without gradient, of any scale; (B, 0) for a method that does
                not look at the teacher at every step.
            student: (B, Ds) float, of any scale.
            index: (B,) int64, positions of the images in the full training set, each once.
            label: (B,) int64, -1 without labels.

        Returns:
            0-d, the loss of all B rows, float32 (float64 for such embeddings); None while there is
            nothing to learn from.

        Raises:
            DistillError: Embeddings that do not fit each other.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Let memories take in the batch of the last `forward`, once the optimizer has moved."""

    def fill(self, teacher: Tensor, embed: Callable[[], Tensor], index: Tensor) -> bool:
        """Take in a batch without learning from it.

        Args:
            teacher: As for `forward`.
            embed: Embeds the first view with the momentum copy or the student: (B, Ds).
            index: As for `forward`.

        Returns:
            Whether the memory is full.
        """
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """Return further numbers for the log; all ranks call it together."""
        return {}

    def shard(self) -> ShardState | None:
        """Return what is spread over ranks and therefore not in `state_dict`; None for nothing."""
        return None

    def load_shards(self, shards: Sequence[dict[str, Any]]) -> None:
        """Restore what `shard` returned on every rank, whose number need not be this run's."""


class ShardState(NamedTuple):
    """A rank's part of what is spread over `num_shards` ranks; alone it is the whole.

    Attributes:
        rank: Which part, from 0.
        num_shards: How many there are.
        state: Tensors and plain values, nested in dicts and lists.
    """

    rank: int
    num_shards: int
    state: dict[str, Any]


METHODS: Registry[type[DistillationLoss]] = Registry(
    "method", remedy="`distill list methods` describes them"
)


def register_method(
    name: str, *, summary: str, teacher: Literal["every step", "once", "never"] = "every step"
) -> Callable[[Loss], Loss]:
    """Make a `DistillationLoss` a method that `--method NAME` trains with.

    Args:
        name: As people type it.
        summary: One line for lists.
        teacher: When the method looks at the teacher: at every step, once before training, never.

    See examples/own_method.py.
    """

    def register(loss: Loss) -> Loss:
        if name in METHODS:
            raise DistillError(f"there is a method {name!r} already; give yours another name")
        loss.name, loss.summary, loss.teacher = name, summary, teacher
        METHODS.add(name, loss)
        return loss

    return register


_loaded: set[Path] = set()


def load_plugins(files: Sequence[Path] = ()) -> None:
    """Import what registers further methods: entry points of `distill.methods`, and files.

    Args:
        files: Python files; each is imported once in a process.

    Raises:
        DistillError: A file that is missing or fails, an entry point that fails, or a name that is
            taken.
    """
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:
            raise DistillError(
                f"the installed method {point.name} ({point.value}) cannot be imported: {error}; "
                "repair or uninstall its package"
            ) from error
    for file in files:
        path = Path(file).expanduser().resolve()
        if path in _loaded:
            continue
        if not path.is_file() or path.suffix != ".py":
            raise DistillError(f"--plugin {file} is no Python file; name one that exists")
        spec = importlib.util.spec_from_file_location(f"distill_plugin_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[spec.name]
            raise DistillError(
                f"--plugin {file} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        _loaded.add(path)


def unit_rows(embeddings: Tensor) -> Tensor:
    """L2-normalize the rows, in float32 or wider; rows of zeros stay."""
    return F.normalize(embeddings.to(torch.promote_types(torch.float32, embeddings.dtype)))


def check_rows(teacher: Tensor, student: Tensor) -> None:
    """Refuse embeddings that are not of the same images.

    Args:
        teacher: (B, Dt).
        student: (B, Ds).

    Raises:
        DistillError: One is no matrix, or their numbers of rows differ.
    """
    for name, rows in (("teacher", teacher), ("student", student)):
        if rows.ndim != 2:
            raise DistillError(f"{name} has shape {tuple(rows.shape)}; it must be a matrix, B x D")
    if len(teacher) != len(student):
        raise DistillError(
            f"teacher has {len(teacher)} rows and student {len(student)}; both must be of the same "
            "images"
        )


def required(value: Tensor | None, name: str, method: str) -> Tensor:
    """Return an argument of `forward` that a method cannot do without.

    Raises:
        DistillError: It was not given.
    """
    if value is None:
        raise DistillError(f"{method} needs the {name} of every row; give {name}=...")
    return value


def check_counts(**counts: int) -> None:
    """Refuse widths and numbers of things below 1, naming them.

    Raises:
        DistillError: One of them is.
    """
    for name, count in counts.items():
        if count < 1:
            raise DistillError(f"{name} is {count}; it must be at least 1")


def check_weights(**weights: float) -> None:
    """Refuse weights that are negative or not finite, naming them.

    Raises:
        DistillError: One of them is.
    """
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise DistillError(f"{name} is {weight}; it must be at least 0 and finite")
