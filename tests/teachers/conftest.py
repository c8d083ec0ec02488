"""What the original program computed for the self-supervised objectives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def ceb(oracles: Path) -> dict[str, np.ndarray]:
    """Inputs, losses, gradients and logged quantities, by key."""
    with np.load(oracles / "ceb" / "objectives.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def given(ceb) -> Callable[[str], Tensor]:
    """Return a function that returns an input of the oracle as a leaf that takes a gradient."""
    return lambda name: torch.tensor(ceb[name]).requires_grad_()


def relative_error(ours: Tensor, theirs: np.ndarray) -> float:
    difference = ours.detach().double().numpy() - theirs
    return float(np.abs(difference).max() / np.abs(theirs).max())


@pytest.fixture(scope="session")
def agrees(ceb) -> Callable[..., None]:
    """Return a function that compares tensors by name with the oracle's, to 1e-4 relative."""

    def compare(case: str, **ours: Tensor) -> None:
        for name, value in ours.items():
            assert relative_error(value, ceb[f"{case}/{name}"]) < 1e-4, name

    return compare
