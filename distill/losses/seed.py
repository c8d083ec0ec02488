"""SEED: the student's similarities with a queue of the teacher's embeddings are the teacher's.

Source: Fang et al., SEED: Self-supervised Distillation for Visual Representation, ICLR 2021. For
the teacher's embedding t, what a head makes of the student's, z = g(s), a queue of the teacher's
embeddings A of recent images, and the image's own t before them (A_0 = t), all of unit norm,

    p_ij = softmax_j( t_i . A_j / tau_t ),    q_ij = softmax_j( z_i . A_j / tau_s ),  j = 0..K,
    loss = -(1/B) sum_i sum_j p_ij log q_ij.

The batch is enqueued after its loss. Published: tau_t = 1e-4, which all but turns p into the image
itself (the paper's text has .01), and tau_s = .2; K = 65,536.

Assumed: the head g is Linear Ds -> Ds, ReLU, Linear Ds -> Dt, dropped after training. The teacher's
embedding is taken as it comes; the paper took the 128-d projection that its teachers had been
pre-trained through.
Departures: the queue starts empty and only real anchors count; an image's own old embedding in the
queue, which a teacher's cache would make equal to the positive, is left out (`mask_self`).
Limits: the queue is whole on every rank; B x (K + 1) logits for each side.
Shapes: B rows of all ranks, K anchors, Dt and Ds widths.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.config import AtLeast1, Positive
from distill.errors import DistillError
from distill.kernels.anchor_kl import check_temperature
from distill.losses.anchors import DTYPES_BY_NAME, AnchorQueue
from distill.losses.base import (
    BaselineOptions,
    BuildContext,
    DistillationLoss,
    MemoryNeed,
    MethodFacts,
    check_counts,
    check_rows,
    register_method,
    unit_rows,
)

PUBLISHED_QUEUE_SIZE = 65_536


@register_method(
    "seed",
    summary="SEED: soft cross-entropy with the teacher's own embedding and a queue (ICLR 2021)",
)
class SEED(DistillationLoss):
    """Soft cross-entropy over the positive and a queue.

    Args:
        queue: One bank of the teacher's width, whole; its state is part of this module's.
        student_dim: Ds.
        teacher_dim: Dt, the queue's width.
        temperature: Of the teacher's softmax, > 0.
        student_temperature: > 0.
        mask_self: Leave anchors of a row's own image out of its softmaxes.

    Raises:
        DistillError: A number out of its range, or a queue with a second bank or a part of one.

    Example:
        >>> loss = SEED(AnchorQueue(size=64, dim=8), teacher_dim=8, student_dim=4)
        >>> teacher, student = torch.randn(16, 8), torch.randn(16, 4)
        >>> loss(teacher, student) is None  # the queue is empty
        True
        >>> loss.after_step()
        >>> loss(teacher, student).shape
        torch.Size([])
    """

    @dataclass(frozen=True)
    class Options(BaselineOptions):
        """Options of `seed`."""

        temperature: Positive = 1e-4
        """Temperature of the teacher's softmax."""
        student_temperature: Positive = 0.2
        """Temperature of the student's softmax."""
        queue_size: AtLeast1 | None = None
        """Number of anchors; None: nine tenths of the training images, at most 65,536."""
        queue_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
        """Storage of the anchors."""
        mask_self: bool = True
        """Leave an image's own old embedding out of its anchors."""

    def __init__(
        self,
        queue: AnchorQueue,
        *,
        teacher_dim: int,
        student_dim: int,
        temperature: float = 1e-4,
        student_temperature: float = 0.2,
        mask_self: bool = True,
    ) -> None:
        super().__init__()
        check_counts(teacher_dim=teacher_dim, student_dim=student_dim)
        check_temperature("temperature", temperature)
        check_temperature("student_temperature", student_temperature)
        if queue.is_sharded or not queue.one_bank:
            raise DistillError("SEED needs a queue of one bank that is whole in every process")
        self.queue = queue
        self.head = nn.Sequential(
            nn.Linear(student_dim, student_dim), nn.ReLU(), nn.Linear(student_dim, teacher_dim)
        )
        self.temperature = temperature
        self.student_temperature = student_temperature
        self.mask_self = mask_self
        self._to_enqueue: tuple[Tensor, Tensor | None] | None = None

    @classmethod
    def resolve(cls, options: Options, facts: MethodFacts) -> Options:
        """Fill in the size of the queue; see `DistillationLoss`."""
        if options.queue_size is not None:
            return options
        size = min(PUBLISHED_QUEUE_SIZE, max(1, facts.num_images * 9 // 10))
        return replace(options, queue_size=size)

    @classmethod
    def memory_needed(cls, options: Options, context: BuildContext) -> MemoryNeed:
        """Return what the queue takes; see `DistillationLoss`."""
        assert options.queue_size is not None
        dtype = DTYPES_BY_NAME[options.queue_dtype]
        num_bytes = AnchorQueue.required_bytes(options.queue_size, context.teacher_dim, None, dtype)
        remedy = "lower --queue-size or use --queue-dtype bf16"
        return MemoryNeed(num_bytes, f"a queue of {options.queue_size:,} anchors", remedy)

    @classmethod
    def build(cls, options: Options, context: BuildContext) -> SEED:
        """Build it; see `DistillationLoss`."""
        assert options.queue_size is not None
        queue = AnchorQueue(
            options.queue_size,
            context.teacher_dim,
            dtype=DTYPES_BY_NAME[options.queue_dtype],
            device=context.device,
        )
        return cls(
            queue,
            teacher_dim=context.teacher_dim,
            student_dim=context.student_dim,
            temperature=options.temperature,
            student_temperature=options.student_temperature,
            mask_self=options.mask_self,
        )

    def forward(
        self,
        teacher: Tensor,
        student: Tensor,
        index: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor | None:
        """Return the loss, or None while the queue is empty; see `DistillationLoss`."""
        check_rows(teacher, student)
        self._to_enqueue = (teacher, index)
        if self.queue.num_valid == 0:
            return None
        t, z = unit_rows(teacher), unit_rows(self.head(student))
        with torch.no_grad():
            p = (self._similarities(t, t, index) / self.temperature).softmax(1)
        log_q = (self._similarities(z, t, index) / self.student_temperature).log_softmax(1)
        # 0 times the logarithm of 0 where an anchor is left out
        return -torch.where(p > 0, p * log_q, 0).sum(1).mean()

    def after_step(self) -> None:
        """Replace the oldest anchors with the last batch."""
        if self._to_enqueue is not None:
            teacher, index = self._to_enqueue
            self.queue.enqueue(teacher, image_index=index)
            self._to_enqueue = None

    def metrics(self) -> dict[str, float]:
        """Return the number of anchors that are real."""
        return {"num_anchors": self.queue.num_valid}

    def get_extra_state(self) -> dict[str, Any]:
        """Return the queue's state."""
        return self.queue.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        self.queue.load_state_dict(state)

    def _similarities(self, rows: Tensor, teacher: Tensor, index: Tensor | None) -> Tensor:
        """Return cosines with the positive and the anchors, B x (K + 1); -inf where left out."""
        anchors = self.queue.anchors()
        positive = (rows * teacher).sum(1, keepdim=True)
        with_anchors = rows @ anchors.teacher.to(rows.dtype).T
        if self.mask_self and index is not None:
            own = anchors.image_index == index[:, None]
            with_anchors = with_anchors.masked_fill(own, -torch.inf)
        return torch.cat([positive, with_anchors], dim=1)
