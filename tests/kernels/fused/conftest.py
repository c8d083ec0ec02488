"""Where the fused kernels run in tests, and plans whose tiles suit the interpreter."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from distill.kernels.fused.cost import DEVICES
from distill.kernels.fused.plan import FirstTile, Plan, Problem, SecondTile
from distill.kernels.fused.tuning import make_plan

if importlib.util.find_spec("triton") is None:  # there is none for this platform
    collect_ignore_glob = ["*"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """A GPU where there is one, else the CPU, where Triton's interpreter runs the kernels."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def plan_with() -> object:
    """Return a function that makes a plan with a given record.

    The interpreter spends its time per operation, whatever the size of a tile: tiles are large, yet
    so that rows, anchors and columns of most cases are cut into several. On a GPU the plan is None,
    the launcher's own choice, since such tiles fit no GPU.
    """

    def make(problem: Problem, record: str) -> Plan | None:
        if torch.cuda.is_available():
            return None
        wide = problem.Ds > 128
        rows = min(64, max(16, _power_above(problem.B)))
        first = FirstTile(rows, 256, 256 if problem.one_bank else 128, 128 if wide else 32, 4, 1)
        columns = max(16, _power_above(problem.Ds)) if record == "teacher" else 256 if wide else 32
        second = SecondTile(rows, 128, columns, 4, 1)
        return make_plan(problem, DEVICES["H100"], record, first, second)

    return make


def _power_above(number: int) -> int:
    return 1 << (number - 1).bit_length()
