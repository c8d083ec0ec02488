"""What a baseline is: a loss between the teacher's and the student's embeddings of a batch.

It sees the rows of all ranks at once and does the same on every rank, so that heads, BatchNorm in
heads and memories need to know nothing of ranks. Heads are its parameters: they are trained with
the student and dropped afterwards. What it remembers between steps is in its `state_dict`, random
draws included, so that a run that is continued goes on as if it had not stopped.

Shapes: B rows of all ranks, Dt and Ds widths.
"""

from __future__ import annotations

from torch import Tensor, nn


class ImitationLoss(nn.Module):
    """The interface of a baseline; memories that follow the steps override `after_step`."""

    def forward(
        self, teacher: Tensor, student: Tensor, index: Tensor, label: Tensor
    ) -> Tensor | None:
        """Return the loss of a batch.

        Args:
            teacher: (B, Dt) float, without gradient, of any scale; (B, 0) for a method that does
                not look at the teacher in training.
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

    def metrics(self) -> dict[str, float]:
        """Return further numbers for the log."""
        return {}
