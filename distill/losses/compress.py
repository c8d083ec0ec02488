"""CompRess: the student keeps the teacher's neighbors among a queue of anchors.

Source: Abbasi Koohpayegani, Tejankar, Pirsiavash, CompRess: Self-Supervised Learning by Compressing
Representations, NeurIPS 2020. Teacher and student embeddings of a batch are compared with the
anchors of recent images; the loss is the batch mean of KL(teacher || student) between the two
softmaxes of similarities (`distill.kernels.anchor_kl`).

Several ranks share the batch. The queue is either spread over them, and then every rank compares
the rows of all ranks with its own anchors, or whole on each of them, which then compares its own
rows. Both give the loss and the gradient of one process with the global batch.
Shapes: B rows of all ranks, b of them on this rank, Dt and Ds widths.

Departures from the published code, both optional: an image's own old embedding is left out of its
softmaxes (`mask_self`), and the queue may start empty instead of random.
Limits: the caller evaluates the loss before it enqueues the batch, and saves the queue.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distill.distributed import own_rows
from distill.kernels.anchor_kl import anchor_kl, check_implementation, check_temperature
from distill.losses.anchors import AnchorMemory
from distill.losses.base import unit_rows


class CompRess(nn.Module):
    """Loss and queue of CompRess, for all three variants.

    The variants differ in the student's bank and in what `enqueue` gets as `key`:
    two-queue-momentum (the paper's main variant, "2q") has a bank of embeddings by a momentum copy;
    two-queue has a bank of the student's own; one-queue ("1q") reads the teacher's, so the student
    must be as wide as the teacher (through a linear layer), and has no key.

    Args:
        queue: Banks of the widths that teacher and student have: an `AnchorQueue`, or
            `DatasetAnchors`. It is no part of the module's state: save its own `state_dict`.
        teacher_temperature: > 0.
        student_temperature: > 0.
        mask_self: Leave anchors of a row's own image out of its softmaxes.
        implementation: Of `anchor_kl`.

    Raises:
        DistillError: A temperature is not positive and finite, or the implementation is unknown or
            cannot serve a queue that is spread over ranks.
    """

    def __init__(
        self,
        queue: AnchorMemory,
        *,
        teacher_temperature: float = 0.04,
        student_temperature: float = 0.04,
        mask_self: bool = True,
        implementation: str = "auto",
    ) -> None:
        super().__init__()
        check_temperature("teacher_temperature", teacher_temperature)
        check_temperature("student_temperature", student_temperature)
        check_implementation(implementation, sharded=queue.is_sharded)
        self.queue = queue
        self.teacher_temperature = teacher_temperature
        self.student_temperature = student_temperature
        self.mask_self = mask_self
        self.implementation = implementation

    def forward(
        self,
        teacher: Tensor,
        student: Tensor,
        image_index: Tensor,
        row_counts: Sequence[int] | None = None,
    ) -> Tensor | None:
        """Return the loss of a batch against the anchors enqueued so far.

        Args:
            teacher: Teacher embeddings of all ranks' rows, B x Dt, any float dtype; need not be
                unit.
            student: What the student says of this rank's rows, b x Ds, any float dtype; need not
                be unit.
            image_index: Of all ranks' rows, B, int64, >= 0; unused without `mask_self`.
            row_counts: b of every rank; None in one process, where b = B.

        Returns:
            The loss, 0-d float32, whose mean over the ranks is the mean over the B rows; or None
            while the queue holds no anchor. Its gradient is as `distill.distributed` describes.

        Raises:
            DistillError: Shapes, dtypes or devices do not fit each other or the queue.
        """
        if self.queue.num_valid == 0:
            return None
        if row_counts is None or self.queue.is_sharded:
            return self._divergence(teacher, student, image_index, row_counts)
        if len(student) == 0:
            return student.sum()  # 0, and a backward pass that the other ranks wait for
        mine = own_rows(row_counts)
        weight = len(row_counts) * len(student) / sum(row_counts)
        return weight * self._divergence(teacher[mine], student, image_index[mine], None)

    @torch.no_grad()
    def chance(self, teacher: Tensor, image_index: Tensor) -> Tensor | None:
        """Return the loss of a student that says the same of every image and every anchor.

        Its q is uniform, so this is the mean of log n_i - H(p_i) over the n_i anchors that row i is
        compared with. With one queue a student that says the same of every image may be a little
        below, because it can still prefer the anchors that most images are near to.

        Args:
            teacher: Teacher embeddings of any rows, B x Dt, the same on every rank.
            image_index: Of these rows, B, int64, >= 0.

        Returns:
            0-d float32; None while the queue holds no anchor. All ranks call it together.
        """
        if self.queue.num_valid == 0:
            return None
        counts = None
        num_rows = len(teacher)
        if self.queue.is_sharded:
            rank, num_ranks = self.queue.shard
            counts = [num_rows, *[0] * (num_ranks - 1)]
            num_rows = counts[rank]
        nothing = teacher.new_zeros(num_rows, self.queue.anchors().student.shape[1])
        return self._divergence(teacher, nothing, image_index, counts)

    def enqueue(self, teacher: Tensor, key: Tensor | None, image_index: Tensor) -> None:
        """Let the anchors take in a batch; call it after the batch's `forward`.

        The rows are those of all ranks, given to every rank.

        Args:
            teacher: B x Dt; need not be unit.
            key: The student's side, B x Ds: the momentum copy's embedding or the student's own.
                Ignored with one queue.
            image_index: B, int64, >= 0.

        Raises:
            DistillError: A shape does not fit the queue.
        """
        self.queue.enqueue(teacher, key, image_index)

    def _divergence(
        self,
        teacher: Tensor,
        student: Tensor,
        image_index: Tensor,
        row_counts: Sequence[int] | None,
    ) -> Tensor:
        anchors = self.queue.anchors()
        return anchor_kl(
            unit_rows(teacher.detach()),
            unit_rows(student),
            anchors.teacher,
            anchors.student,
            teacher_temperature=self.teacher_temperature,
            student_temperature=self.student_temperature,
            self_mask=(image_index, anchors.image_index) if self.mask_self else None,
            implementation=self.implementation,
            row_counts=row_counts,
        )

    def extra_repr(self) -> str:
        """Describe the settings and the queue."""
        return (
            f"{self.queue!r}, teacher_temperature={self.teacher_temperature}, "
            f"student_temperature={self.student_temperature}, mask_self={self.mask_self}, "
            f"implementation={self.implementation!r}"
        )
