from __future__ import annotations

import pytest
import torch

from distill.comparison import slots
from distill.comparison.slots import slot_environments
from distill.errors import DistillError


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Have six cores and no GPU."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(slots, "num_usable_cores", lambda: 6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_one_run_has_the_machine():
    assert slot_environments(1) == [{}]


def test_runs_share_the_cores(monkeypatch):
    assert slot_environments(2) == [{"OMP_NUM_THREADS": "3"}] * 2
    assert slot_environments(7) == [{"OMP_NUM_THREADS": "1"}] * 7
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # the person knows better
    assert slot_environments(2) == [{}, {}]


def test_runs_have_gpus_of_their_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [found["CUDA_VISIBLE_DEVICES"] for found in slot_environments(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-abc")
    assert [found["CUDA_VISIBLE_DEVICES"] for found in slot_environments(2)] == ["5", "GPU-abc"]


def test_less_than_one_is_refused():
    with pytest.raises(DistillError, match="--jobs is 0, it must be at least 1"):
        slot_environments(0)
