"""Linear classifiers trained by SGD, several settings at once on the same batches.

G heads are one tensor (G, C, D): a batch is read once and multiplied once for all of them, and a
head is what it would be alone, up to the rounding of a matrix product of another size. All start
from the same weights. The step is PyTorch's SGD written out, since its learning rate and weight
decay differ by head:

    gradient = d cross-entropy / d weight + weight decay x weight
    velocity = momentum x velocity + gradient
    weight   = weight - learning rate x velocity

Published setting (CompRess, NeurIPS 2020): learning rate 0.01, momentum 0.9, weight decay 1e-4 (of
the bias too), batches of 256, 40 epochs, learning rate x 0.1 after 15 and after 30.

Shapes: G heads, B batch, D width, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distill.errors import DistillError


class HeadBatch(NamedTuple):
    """What a step learns from.

    Attributes:
        epoch: From 0.
        rows: Standardized embeddings, float32 (B, D).
        labels: int64 (B,), 0..C-1, on the device of `rows`.
    """

    epoch: int
    rows: Tensor
    labels: Tensor


@dataclass(frozen=True)
class HeadSetting:
    """What one head is trained with.

    Attributes:
        learning_rate: Of the first epoch; positive and finite.
        weight_decay: At least 0 and finite.
    """

    learning_rate: float = 0.01
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise DistillError(
                f"a learning rate is {self.learning_rate:g}, it must be positive and finite"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise DistillError(
                f"a weight decay is {self.weight_decay:g}, it must be at least 0 and finite"
            )


@dataclass(frozen=True)
class LinearSchedule:
    """What all heads of a training share.

    Attributes:
        num_epochs: Over the training rows.
        batch_size: Rows of a step.
        decay_epochs: After how many epochs the learning rate is multiplied by `decay_factor`.
        decay_factor: See there.
        momentum: Of SGD.
    """

    num_epochs: int = 40
    batch_size: int = 256
    decay_epochs: tuple[int, ...] = (15, 30)
    decay_factor: float = 0.1
    momentum: float = 0.9

    def factor(self, epoch: int) -> float:
        """Return what the learning rate is multiplied by in an epoch, counted from 0."""
        return self.decay_factor ** sum(epoch >= end for end in self.decay_epochs)


PUBLISHED_SETTING = HeadSetting()
PUBLISHED_SCHEDULE = LinearSchedule()


@dataclass(frozen=True)
class LinearHeads:
    """G linear classifiers.

    Attributes:
        weight: (G, C, D) float32.
        bias: (G, C) float32.
    """

    weight: Tensor
    bias: Tensor

    def logits(self, rows: Tensor) -> Tensor:
        """Return (B, G, C) for standardized rows (B, D), by one matrix product."""
        products = rows @ self.weight.flatten(0, 1).T
        return products.unflatten(1, self.bias.shape) + self.bias


def initial_heads(
    num_heads: int, *, num_classes: int, dim: int, seed: int, device: torch.device
) -> LinearHeads:
    """Return heads with the same weights, uniform in +-1 / sqrt(D) as PyTorch's linear layer.

    The numbers are drawn on the CPU, so that they do not depend on the device.
    """
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(dim)
    weight = torch.empty(num_classes, dim).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(num_classes).uniform_(-bound, bound, generator=generator)
    return LinearHeads(
        weight.to(device).repeat(num_heads, 1, 1), bias.to(device).repeat(num_heads, 1)
    )


@torch.no_grad()
def train_heads(
    heads: LinearHeads,
    settings: Sequence[HeadSetting],
    batches: Iterable[HeadBatch],
    schedule: LinearSchedule,
) -> LinearHeads:
    """Train heads in place, one with each setting, and return them.

    A head whose learning rate is too large ends with weights that are not finite, and does not
    disturb the others.

    Args:
        heads: G heads to start from.
        settings: G settings.
        batches: All batches of all epochs.
        schedule: Its momentum and its factors count; the batches are as they come.
    """
    assert len(settings) == len(heads.weight)
    rates = [setting.learning_rate for setting in settings]
    learning_rate = torch.tensor(rates, device=heads.weight.device)
    decays = [setting.weight_decay for setting in settings]
    weight_decay = torch.tensor(decays, device=heads.weight.device)
    velocities = torch.zeros_like(heads.weight), torch.zeros_like(heads.bias)
    for batch in batches:
        step_rate = learning_rate * schedule.factor(batch.epoch)
        for parameter, velocity, gradient in zip(
            (heads.weight, heads.bias), velocities, _gradients(heads, batch), strict=True
        ):
            per_head = (-1,) + (1,) * (parameter.ndim - 1)
            gradient.add_(weight_decay.view(per_head) * parameter)
            velocity.mul_(schedule.momentum).add_(gradient)
            parameter.sub_(step_rate.view(per_head) * velocity)
    return heads


def _gradients(heads: LinearHeads, batch: HeadBatch) -> tuple[Tensor, Tensor]:
    """Return the gradients of the mean cross-entropy: (softmax - one hot) / B, times the rows."""
    surplus = heads.logits(batch.rows).softmax(dim=2)  # (B, G, C)
    images = torch.arange(len(batch.labels), device=batch.labels.device)
    surplus[images, :, batch.labels] -= 1
    surplus /= len(batch.labels)
    weight = (surplus.flatten(1).T @ batch.rows).view_as(heads.weight)
    return weight, surplus.sum(0)
