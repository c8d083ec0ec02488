"""CompRess: the student keeps the teacher's neighbors among a bank of anchors.

Source: Abbasi Koohpayegani, Tejankar, Pirsiavash, CompRess: Self-Supervised Learning by Compressing
Representations, NeurIPS 2020. Teacher and student embeddings of a batch are compared with anchors,
the embeddings of other images; the loss is the batch mean of KL(teacher || student) between the two
softmaxes of similarities (`distill.kernels.anchor_kl`). The batch is enqueued after its loss.

Beyond the paper, each optional:

- an image's own old embedding is left out of its softmaxes (`mask_self`);
- the queue may start empty instead of random, or hold every training image (`DatasetAnchors`);
- the mean of the teacher's unit embeddings is subtracted from them (`teacher_mean`). Embeddings of
  a network with a last ReLU or a bias lie in a cone: any two images are similar, and most of a
  similarity says nothing about the image. Centering a teacher's output is DINO's (Caron et al.,
  ICCV 2021, section 3.1), there by a running mean; this teacher's is known before the first step;
- a share of the loss is Reg-BN's (`regression_share`): what the divergence becomes, up to a factor,
  for vectors of any length at a high temperature against anchors that fill the space evenly;
- several views of an image are each compared with the teacher's embedding, and the loss is their
  mean; a price on what a view keeps that the other does not tell may be added (`compression`).

Several ranks share the batch. The bank is either spread over them, and then every rank compares the
rows of all ranks with its own anchors, or whole on each, which then compares its own rows. Both
give the loss and the gradient of one process with the global batch.

Shapes: B rows of all ranks, b of them on this rank, Dt and Ds widths.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill import distributed
from distill.config import AtLeast0, AtLeast1, Concentration, NonNegative, Positive, Share
from distill.distributed import all_gather_variable, all_gather_variable_with_gradient, own_rows
from distill.errors import DistillError
from distill.kernels import fused
from distill.kernels.anchor_kl import anchor_kl, check_implementation, check_temperature
from distill.losses.anchors import DTYPES_BY_NAME, AnchorMemory, AnchorQueue
from distill.losses.base import (
    BuildContext,
    DistillationLoss,
    MemoryNeed,
    MethodFacts,
    Rows,
    ShardState,
    register_method,
    unit_rows,
)
from distill.losses.dataset_anchors import DatasetAnchors
from distill.losses.reg_bn import standardized_error
from distill.losses.residual_information import ResidualInformation

PUBLISHED_QUEUE_SIZE = 128_000
PUBLISHED_TEMPERATURE = 0.04
CENTERED_TEMPERATURE = 0.07  # similarities spread more without what all embeddings share
# Four parts regression to one of divergence; both alone are behind (docs/comparison.md).
REGRESSION_SHARE = 0.8
PUBLISHED_MOMENTUM = 0.999
CHANCE_EVERY = 10  # batches between those whose chance level is evaluated
CHANCE_KEPT = 4
MAX_MEAN_ROWS = 65_536  # more would not move a mean of unit vectors by 1 % of its length
_CHUNK = 4096


@register_method(
    "compress", summary="CompRess: the teacher's neighbors among a queue of anchors (NeurIPS 2020)"
)
class CompRess(DistillationLoss):
    """KL divergence between similarities with anchors, for all three variants of the paper.

    The variants differ in the student's bank and in its rows, the `key` of `forward`:
    two-queue-momentum (the paper's main variant, "2q") has a bank of embeddings by a momentum copy;
    two-queue has a bank of the student's own; one-queue ("1q") reads the teacher's, so the student
    must be as wide as the teacher (through `projection`), and has no key.

    Args:
        queue: Banks of the widths that teacher and student have: an `AnchorQueue`, or
            `DatasetAnchors`. Save it by `shard`: it is no part of `state_dict`.
        temperature: Of the teacher's softmax, > 0.
        student_temperature: > 0; None: the same.
        mask_self: Leave anchors of a row's own image out of its softmaxes, for rows with an index.
        teacher_mean: (Dt,) float32, subtracted from the teacher's unit rows; None for nothing.
        regression_share: Part of the loss that is regression, 0 to 1; above 0 student and teacher
            have one width.
        compression: Price on the residual information of the first two views; None for none.
        projection: See `DistillationLoss`.
        momentum: See `DistillationLoss`.
        wants_prefill: See `DistillationLoss`.
        implementation: Of `anchor_kl`.

    Raises:
        DistillError: A temperature is not positive and finite, or the implementation is unknown or
            cannot serve a queue that is spread over ranks.

    Example:
        >>> loss = CompRess(AnchorQueue(size=64, dim=8), temperature=0.04)
        >>> teacher, student = torch.randn(16, 8), torch.randn(16, 8, requires_grad=True)
        >>> loss.enqueue(teacher)
        >>> value = loss(torch.randn(16, 8), student)
        >>> value.backward()
        >>> loss.enqueue(teacher)
    """

    takes_views = True
    takes_own_rows = True

    @dataclass(frozen=True)
    class Options:
        """CompRess: anchors, temperatures, momentum copy."""

        variant: Literal["two-queue-momentum", "two-queue", "one-queue"] = "one-queue"
        """Where the student's anchors come from: its momentum copy, itself, or the teacher's
        queue."""
        anchors: Literal["queue", "dataset"] | None = None
        """queue: recent images, first in, first out; dataset: every training image, with one queue
        from the first step on, else from its first visit on (needs --teacher-view center); None:
        dataset for one queue with at most 128,000 images, unless options of a queue are given."""
        queue_size: AtLeast1 | None = None
        """Number of anchors in a queue; None: nine tenths of the training images, at most
        128,000."""
        queue_init: Literal["empty", "random", "prefill"] = "empty"
        """empty: only real anchors count; random: as published; prefill: one pass before
        training."""
        queue_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
        """Storage of the anchors."""
        queue_sharding: Literal["ranks", "none"] = "ranks"
        """Under torchrun. ranks: every process holds its share of the anchors; none: all of
        them."""
        temperature: Positive | None = None
        """Temperature of the teacher's softmax; None: 0.04, as published, or 0.07 without the
        teacher's mean."""
        student_temperature: Positive | None = None
        """Temperature of the student's softmax; None: the same as the teacher's."""
        teacher_mean: Literal["keep", "subtract"] | None = None
        """What all of the teacher's unit embeddings share. subtract: compare without it (needs
        --teacher-view center); keep: as published; None: subtract for one queue where it can
        be."""
        regression_share: Share | None = None
        """Share of Reg-BN's regression in the loss, 0 to 1: the student's embedding and the
        teacher's, both standardized over the batch (one queue only); 0: the divergence alone, as
        published; None: 0.8 for one queue."""
        momentum: Share | None = None
        """Momentum m of the student's copy (two-queue-momentum only); None: by the number of
        steps."""
        mask_self: bool = True
        """Leave an image's own old embedding out of its anchors."""
        projection_dim: AtLeast0 | None = None
        """Width of the linear layer that the student is trained through, dropped after training;
        None: the teacher's for one queue, else no layer (the published recipe: 8192 for
        ResNet-50); 0: no layer."""
        compression_beta: NonNegative = 0.0
        """Price per nat of what a student's embedding keeps of one view and the other does not
        tell, as in C-SimCLR; needs --student-crops 2."""
        kappa_e: Concentration | None = None
        """Concentration of the embedding's own distribution; None: 1024 where there is a price."""
        kappa_b: Concentration | None = None
        """Concentration of what the other view predicts; None: 10 where there is a price."""
        loss_implementation: Literal["auto", "blocked", "reference", "triton"] = "auto"
        """How the loss is computed."""

    teacher_mean: Tensor | None

    def __init__(
        self,
        queue: AnchorMemory,
        *,
        temperature: float = PUBLISHED_TEMPERATURE,
        student_temperature: float | None = None,
        mask_self: bool = True,
        teacher_mean: Tensor | None = None,
        regression_share: float = 0.0,
        compression: ResidualInformation | None = None,
        projection: nn.Module | None = None,
        momentum: float | None = None,
        wants_prefill: bool = False,
        implementation: str = "auto",
    ) -> None:
        super().__init__()
        student_temperature = temperature if student_temperature is None else student_temperature
        check_temperature("temperature", temperature)
        check_temperature("student_temperature", student_temperature)
        check_implementation(implementation, sharded=queue.is_sharded)
        self.queue = queue
        self.temperature, self.student_temperature = temperature, student_temperature
        self.mask_self = mask_self
        self.register_buffer("teacher_mean", teacher_mean, persistent=False)
        self.regression_share = regression_share
        self.compression = compression
        self.projection = projection
        self.momentum = momentum
        self.wants_prefill = wants_prefill
        self.implementation = implementation
        self._to_enqueue: tuple[Tensor, Tensor | None, Tensor | None] | None = None
        # Loss and chance level of the same images: their difference is what the student knows, and
        # images differ in both far more than that.
        self._beside_chance: deque[tuple[Tensor, Tensor]] = deque(maxlen=CHANCE_KEPT)
        self._num_losses = 0
        self._logged: dict[str, Tensor] = {}

    @classmethod
    def resolve(cls, options: Options, facts: MethodFacts) -> Options:
        """Fill in anchors, temperatures and widths; see `DistillationLoss`.

        Where the teacher's embeddings are at hand all images are anchors, up to as many as a
        published queue holds.
        """
        one_queue = options.variant == "one-queue"
        looks_up = one_queue and facts.teacher_view == "center"
        asks_for_queue = options.queue_size is not None or options.queue_init != "empty"
        fits = facts.num_images <= PUBLISHED_QUEUE_SIZE
        anchors = options.anchors
        if anchors is None:
            anchors = "dataset" if looks_up and fits and not asks_for_queue else "queue"
        # With anchors of the whole data set there are as many as there are images.
        most = min(PUBLISHED_QUEUE_SIZE, max(1, facts.num_images * 9 // 10))
        size = None if anchors == "dataset" else most
        mean = options.teacher_mean or ("subtract" if looks_up else "keep")
        temperature = CENTERED_TEMPERATURE if mean == "subtract" else PUBLISHED_TEMPERATURE
        temperature = _first(options.temperature, temperature)
        momentum = None
        if options.variant == "two-queue-momentum":
            momentum = _first(options.momentum, default_momentum(facts.num_steps))
        width = facts.teacher_dim if one_queue else facts.published_projection_dim or 0
        has_price = options.compression_beta > 0
        return replace(
            options,
            anchors=anchors,
            queue_size=_first(options.queue_size, size),
            teacher_mean=mean,
            temperature=temperature,
            student_temperature=_first(options.student_temperature, temperature),
            regression_share=_first(
                options.regression_share, REGRESSION_SHARE if one_queue else 0.0
            ),
            momentum=momentum,
            projection_dim=_first(options.projection_dim, width),
            kappa_e=_first(options.kappa_e, 1024.0) if has_price else None,
            kappa_b=_first(options.kappa_b, 10.0) if has_price else None,
        )

    @classmethod
    def contradictions(cls, options: Options, config: Any) -> list[str]:
        """Return what contradicts; see `DistillationLoss`."""
        problems = []
        variant = options.variant
        is_online = config.networks.teacher_view == "student"
        if variant != "two-queue-momentum" and options.momentum is not None:
            problems.append(
                f"--momentum {options.momentum} goes with --variant two-queue-momentum, "
                f"not with {variant}; leave one of them out"
            )
        if options.regression_share and variant != "one-queue":
            problems.append(
                f"--regression-share {options.regression_share} goes with --variant one-queue, in "
                f"which the student has the teacher's width, not with {variant}; leave one of them "
                "out"
            )
        if options.teacher_mean == "subtract" and is_online:
            problems.append(
                "--teacher-mean subtract goes with --teacher-view center: the mean of what a "
                "teacher makes of the student's crop is not known beforehand; leave one of them out"
            )
        if options.anchors == "dataset":
            problems += _dataset_contradictions(options, is_online=is_online)
        crops = config.views.student_crops
        if options.compression_beta > 0 and crops < 2:
            problems.append(
                f"--compression-beta {options.compression_beta} compares two views of an image and "
                f"the student sees {crops}; add --student-crops 2"
            )
        for name in ("kappa_e", "kappa_b"):
            value = getattr(options, name)
            if value is not None and options.compression_beta == 0:
                flag = f"--{name.replace('_', '-')}"
                problems.append(
                    f"{flag} {value} goes with --compression-beta, which is 0; give both or none"
                )
        return problems

    @classmethod
    def require_possible(cls, options: Options, context: BuildContext) -> None:
        """Refuse kernels that cannot run here and one queue for two widths."""
        check_implementation(options.loss_implementation, sharded=_shard(options, context)[1] > 1)
        if options.loss_implementation == "triton":
            dtype = DTYPES_BY_NAME[options.queue_dtype]
            fused.require(torch.empty(0, dtype=dtype, device=context.device))
        width = options.projection_dim or context.student_dim
        if options.variant == "one-queue" and width != context.teacher_dim:
            raise DistillError(
                "--variant one-queue compares the student with the teacher's anchors, which are "
                f"{context.teacher_dim} wide, and the student's embedding is {width} wide; leave "
                "out --projection-dim, or use --variant two-queue-momentum"
            )

    @classmethod
    def memory_needed(cls, options: Options, context: BuildContext) -> MemoryNeed:
        """Return what the anchors take; see `DistillationLoss`."""
        of_all = options.anchors == "dataset"
        number = len(context.images) if of_all else options.queue_size
        assert number is not None
        width = options.projection_dim or context.student_dim
        num_bytes = AnchorQueue.required_bytes(
            number,
            context.teacher_dim,
            None if options.variant == "one-queue" else width,
            DTYPES_BY_NAME[options.queue_dtype],
            num_shards=_shard(options, context)[1],
        )
        smaller = "use --anchors queue" if of_all else "lower --queue-size"
        what = f"a {'bank' if of_all else 'queue'} of {number:,} anchors"
        return MemoryNeed(num_bytes, what, f"{smaller} or use --queue-dtype bf16")

    @classmethod
    def build(cls, options: Options, context: BuildContext) -> CompRess:
        """Build loss, anchors and projection; see `DistillationLoss`."""
        assert options.temperature is not None
        assert options.regression_share is not None
        rows, mean = context.teacher_rows, None
        if options.teacher_mean == "subtract":
            assert rows is not None
            mean = mean_direction(rows, context.images, seed=context.seed)
        width = options.projection_dim
        compression = None
        if options.compression_beta:
            assert options.kappa_e is not None
            assert options.kappa_b is not None
            compression = ResidualInformation(
                options.compression_beta, options.kappa_e, options.kappa_b
            )
        return cls(
            _anchors(options, context, mean),
            temperature=options.temperature,
            student_temperature=options.student_temperature,
            mask_self=options.mask_self,
            teacher_mean=mean,
            regression_share=options.regression_share,
            compression=compression,
            projection=nn.Linear(context.student_dim, width) if width else None,
            momentum=options.momentum,
            wants_prefill=options.queue_init == "prefill",
            implementation=options.loss_implementation,
        )

    def forward(
        self,
        teacher: Tensor,
        student: Tensor | Sequence[Tensor],
        index: Tensor | None = None,
        label: Tensor | None = None,
        *,
        key: Tensor | None = None,
        row_counts: Sequence[int] | None = None,
    ) -> Tensor | None:
        """Return the loss of a batch against the anchors enqueued so far.

        Args:
            teacher: Teacher embeddings of all ranks' rows, B x Dt, any float dtype; need not be
                unit.
            student: The student's (projected) embeddings of this rank's rows, b x Ds, any float
                dtype; need not be unit. Several views of the same images as a sequence.
            index: Of all ranks' rows, B, int64, >= 0; None masks no anchors.
            label: Not used.
            key: The momentum copy's embeddings of this rank's rows, b x Ds, which `after_step`
                enqueues for the student; None: the student's own first view.
            row_counts: b of every rank; None in one process, where b = B.

        Returns:
            The loss, 0-d float32, whose mean over the ranks is the mean over the B rows; or None
            while there is no anchor. Its gradient is as `distill.distributed` describes.

        Raises:
            DistillError: Shapes, dtypes or devices do not fit each other or the queue.
        """
        views = [student] if isinstance(student, Tensor) else list(student)
        counts = [len(views[0])] if row_counts is None else row_counts
        teacher = self._centered(teacher)
        self._to_enqueue = (teacher, self._gathered_key(views[0], key, counts), index)
        if self.queue.num_valid == 0:
            return None
        losses = [self._own_divergence(teacher, view, index, row_counts) for view in views]
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        self._note_chance(loss.detach(), teacher, index)
        if self.regression_share:
            regression = _regression(teacher, views, counts)
            self._logged["regression_error"] = regression.detach()
            loss = torch.lerp(loss, regression, self.regression_share)
        if self.compression is not None:
            loss = loss + self._compressed(views, counts)
        return loss

    def after_step(self) -> None:
        """Enqueue the batch of the last `forward`."""
        if self._to_enqueue is not None:
            self.queue.enqueue(*self._to_enqueue)
            self._to_enqueue = None

    def enqueue(
        self, teacher: Tensor, key: Tensor | None = None, index: Tensor | None = None
    ) -> None:
        """Let the anchors take in a batch; call it (or `after_step`) after the batch's `forward`.

        The rows are those of all ranks, given to every rank.

        Args:
            teacher: B x Dt; need not be unit.
            key: The student's side, B x Ds: the momentum copy's embedding or the student's own.
                Ignored with one queue.
            index: B, int64, >= 0; None for rows that no row masks.

        Raises:
            DistillError: A shape does not fit the queue.
        """
        self.queue.enqueue(self._centered(teacher), key, index)
        self._to_enqueue = None

    def fill(self, teacher: Tensor, embed: Callable[[], Tensor], index: Tensor) -> bool:
        """Enqueue a batch without learning from it; see `DistillationLoss`."""
        self.enqueue(teacher, None if self.queue.one_bank else embed(), index)
        return self.queue.num_valid == self.queue.size

    @torch.no_grad()
    def chance(self, teacher: Tensor, index: Tensor | None = None) -> Tensor | None:
        """Return the loss of a student that says the same of every image and every anchor.

        Its q is uniform, so this is the mean of log n_i - H(p_i) over the n_i anchors that row i is
        compared with. With one queue a student that says the same of every image may be a little
        below, because it can still prefer the anchors that most images are near to.

        Args:
            teacher: Teacher embeddings of any rows, B x Dt, the same on every rank.
            index: Of these rows, B, int64, >= 0.

        Returns:
            0-d float32; None while there is no anchor. All ranks call it together.
        """
        return None if self.queue.num_valid == 0 else self._chance(self._centered(teacher), index)

    def metrics(self) -> dict[str, float]:
        """Return the number of anchors that are real, and how the loss stands to chance.

        `chance_loss` is the loss of a student that tells no anchors apart, on the newest of the
        batches that it was evaluated for; `loss_over_chance` the ratio over the newest four, a
        regression and a penalty left out; `regression_error`, from 0 to 2 for unrelated embeddings,
        where it has a share; `residual_information`, in nats, where it has a price. All ranks call
        it together.
        """
        values: dict[str, float] = {"num_anchors": self.queue.num_valid}
        if self._beside_chance:
            loss, chance = torch.tensor([*self._beside_chance]).sum(0).tolist()
            values["chance_loss"] = self._beside_chance[-1][1].item()
            values["loss_over_chance"] = distributed.mean_over_ranks(loss) / max(chance, 1e-12)
        if "regression_error" in self._logged:
            values["regression_error"] = self._logged["regression_error"].item()
        if "residual_information" in self._logged:
            information = self._logged["residual_information"].item()
            values["residual_information"] = distributed.mean_over_ranks(information)
        return values

    def get_extra_state(self) -> dict[str, Any]:
        """Return how the loss stood to chance, the same on every rank; all call it together."""
        beside = [
            (distributed.mean_over_ranks(loss.item()), chance.item())
            for loss, chance in self._beside_chance
        ]
        return {"beside_chance": beside, "num_losses": self._num_losses}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        pairs = state["beside_chance"]
        self._beside_chance.extend((torch.tensor(a), torch.tensor(b)) for a, b in pairs)
        self._num_losses = state["num_losses"]

    def shard(self) -> ShardState | None:
        """Return this rank's part of the anchors; None where all of them can be looked up."""
        state = self.queue.state_dict()
        return ShardState(*self.queue.shard, state) if state else None

    def load_shards(self, shards: Sequence[dict[str, Any]]) -> None:
        """Restore the anchors; see `DistillationLoss`."""
        if self.shard() is not None:
            self.queue.load_state_dict(*shards)

    def extra_repr(self) -> str:
        """Describe the settings and the queue."""
        return (
            f"{self.queue!r}, temperature={self.temperature}, "
            f"student_temperature={self.student_temperature}, mask_self={self.mask_self}, "
            f"implementation={self.implementation!r}"
        )

    def _centered(self, teacher: Tensor) -> Tensor:
        return teacher if self.teacher_mean is None else unit_rows(teacher) - self.teacher_mean

    def _gathered_key(
        self, student: Tensor, key: Tensor | None, counts: Sequence[int]
    ) -> Tensor | None:
        """Return the student's side of all ranks' anchors, of which one queue has none."""
        if self.queue.one_bank:
            return None
        return all_gather_variable(_wide(student.detach() if key is None else key), counts)

    def _own_divergence(
        self,
        teacher: Tensor,
        student: Tensor,
        index: Tensor | None,
        row_counts: Sequence[int] | None,
    ) -> Tensor:
        """Return this rank's share of the divergence, whose mean over the ranks is that of all."""
        if row_counts is None or self.queue.is_sharded:
            return self._divergence(teacher, student, index, row_counts)
        if len(student) == 0:
            return student.sum()  # 0, and a backward pass that the other ranks wait for
        mine = own_rows(row_counts)
        weight = len(row_counts) * len(student) / sum(row_counts)
        own_index = None if index is None else index[mine]
        return weight * self._divergence(teacher[mine], student, own_index, None)

    def _divergence(
        self,
        teacher: Tensor,
        student: Tensor,
        index: Tensor | None,
        row_counts: Sequence[int] | None,
    ) -> Tensor:
        anchors, mask = self.queue.anchors(), index if self.mask_self else None
        return anchor_kl(
            unit_rows(teacher.detach()),
            unit_rows(student),
            anchors.teacher,
            anchors.student,
            teacher_temperature=self.temperature,
            student_temperature=self.student_temperature,
            self_mask=None if mask is None else (mask, anchors.image_index),
            implementation=self.implementation,
            row_counts=row_counts,
        )

    def _chance(self, centered: Tensor, index: Tensor | None) -> Tensor:
        counts, num_rows = None, len(centered)
        if self.queue.is_sharded:
            rank, num_ranks = self.queue.shard
            counts = [num_rows, *[0] * (num_ranks - 1)]
            num_rows = counts[rank]
        nothing = centered.new_zeros(num_rows, self.queue.anchors().student.shape[1])
        return self._divergence(centered, nothing, index, counts)

    @torch.no_grad()
    def _note_chance(self, loss: Tensor, centered: Tensor, index: Tensor | None) -> None:
        """Keep the loss of one batch in ten with its chance level, before it is enqueued."""
        if self._num_losses % CHANCE_EVERY == 0:
            self._beside_chance.append((loss, self._chance(centered, index)))
        self._num_losses += 1

    def _compressed(self, views: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        """Return this rank's penalty, whose mean over the ranks is that of all images."""
        assert self.compression is not None
        x, y = _wide(views[0]), _wide(views[1])
        weight = len(counts) * len(x) / sum(counts)
        information = x.new_zeros(())
        if len(x):
            information = weight * self.compression.information(x, y).detach()
        self._logged["residual_information"] = information
        return (weight or 1.0) * self.compression.penalty(x, y)


def mean_direction(rows: Rows, images: np.ndarray, *, seed: int) -> Tensor:
    """Return the mean of unit embeddings, (D,) float32: the same whatever the number of threads.

    Args:
        rows: Their embeddings.
        images: int64 (N,), N at least 1; of more than `MAX_MEAN_ROWS` a sample is taken.
        seed: Of the sample.
    """
    if len(images) > MAX_MEAN_ROWS:
        images = np.random.default_rng(seed).choice(images, MAX_MEAN_ROWS, replace=False)
    total = np.zeros(rows.embedding_dim)
    for start in range(0, len(images), _CHUNK):
        units = F.normalize(rows.rows(np.sort(images[start : start + _CHUNK])), dim=1)
        total += units.numpy().sum(axis=0, dtype=np.float64)
    return torch.from_numpy((total / len(images)).astype(np.float32))


def default_momentum(num_steps: int, *, published: float = PUBLISHED_MOMENTUM) -> float:
    """Return a momentum that averages over about a tenth of the run, at most the published one.

    0.999 over 360 steps would leave 70 % of the initial weights in the copy.
    """
    return round(min(published, max(0.5, 1 - 10 / num_steps)), 6)


def _wide(rows: Tensor) -> Tensor:
    """Return float32, or float64 as it is; each use casts by itself, and gradients add in bf16."""
    return rows.to(torch.promote_types(torch.float32, rows.dtype))


def _first(value: Any, fallback: Any) -> Any:
    """Return what was given, else what follows the data."""
    return fallback if value is None else value


def _shard(options: CompRess.Options, context: BuildContext) -> tuple[int, int]:
    """Return which part of the anchors this process holds."""
    return (context.rank, context.num_ranks) if options.queue_sharding == "ranks" else (0, 1)


def _anchors(options: CompRess.Options, context: BuildContext, mean: Tensor | None) -> AnchorMemory:
    """Return a queue of recent images, or a slot for every image."""
    student_dim = options.projection_dim or context.student_dim
    widths = (context.teacher_dim, None if options.variant == "one-queue" else student_dim)
    where: dict[str, Any] = {
        "dtype": DTYPES_BY_NAME[options.queue_dtype],
        "device": context.device,
        "shard": _shard(options, context),
    }
    if options.anchors == "queue":
        assert options.queue_size is not None
        init = "random" if options.queue_init == "random" else "empty"
        return AnchorQueue(options.queue_size, *widths, init=init, seed=context.seed, **where)
    table = context.teacher_rows
    assert table is not None

    def compared(index: np.ndarray) -> Tensor:
        rows = table.rows(index)
        return rows if mean is None else unit_rows(rows) - mean

    return DatasetAnchors(context.images, compared, *widths, **where)


def _dataset_contradictions(options: CompRess.Options, *, is_online: bool) -> list[str]:
    problems = []
    if is_online:
        problems.append(
            "--anchors dataset goes with --teacher-view center: its anchors are looked up, and "
            "what a teacher makes of the student's crop is not kept; leave one of them out"
        )
    if options.queue_size is not None:
        problems.append(
            f"--queue-size {options.queue_size} goes with --anchors queue: with dataset every "
            "training image is an anchor; leave one of them out"
        )
    nothing_to_fill = options.queue_init == "prefill" and options.variant == "one-queue"
    if options.queue_init == "random" or nothing_to_fill:
        problems.append(
            f"--queue-init {options.queue_init} goes with --anchors queue: with dataset every "
            "anchor is of an image, with one queue from the start; leave one of them out"
        )
    return problems


def _regression(teacher: Tensor, views: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Return the standardized error of all ranks' rows, the mean over the views."""
    # Columns of unit rows have variances of 1/D, too near to what is added to them.
    target = teacher / teacher.square().mean().sqrt().clamp_min(1e-12)
    rows = (all_gather_variable_with_gradient(_wide(view), counts) for view in views)
    return torch.stack([standardized_error(target, one) for one in rows]).mean()
