"""A small batch in float64 and the check of a loss's gradient, which all baselines share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from distill.losses.base import DistillationLoss

B, DT, DS = 7, 5, 4


class Rows(NamedTuple):
    """What a loss is called with."""

    teacher: Tensor
    student: Tensor
    index: Tensor
    label: Tensor


@pytest.fixture
def rows() -> Rows:
    """Seven images of thirty, embeddings of any length and off the origin, three classes."""
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    return Rows(
        teacher=torch.randn(B, DT, **draw) * 3 + 1,
        student=torch.randn(B, DS, **draw) * 2 - 1,
        index=torch.randperm(30, generator=generator)[:B],
        label=torch.arange(B) % 3,
    )


@pytest.fixture
def check_gradients(rows: Rows) -> Callable[[DistillationLoss], None]:
    """Return a function that compares a loss's gradients with finite differences.

    Of the student's rows and of the heads; the teacher's rows get none of their own.
    """

    def check(loss: DistillationLoss, again: Callable[[], None] = lambda: None) -> None:
        student = rows.student.clone().requires_grad_()
        heads = list(loss.parameters())

        def value(*_: Tensor) -> Tensor:
            again()
            return loss(rows.teacher, student, rows.index, rows.label)

        assert value().shape == ()
        assert torch.autograd.gradcheck(value, (student, *heads))

    return check
