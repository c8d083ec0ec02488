"""Freed memory is kept: the next array of its size is there without a fault for every page."""

from __future__ import annotations

import subprocess
import sys

import pytest

from distill import device as freed_memory

# Run in a process of its own: the setting is the process's and cannot be taken back.
COUNT_FAULTS = """
import resource
import torch
from distill.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**25 + 1)  # 128 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = min(faults() for _ in range(4))
print(keep_freed_memory(), before, [faults() for _ in range(20)][-1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_the_next_array_takes_the_pages_of_the_last():
    printed = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True
    ).stdout.split()
    if printed[0] == "False":
        pytest.skip("the C library is not glibc, or an old one")
    before, after = map(int, printed[1:])
    assert before > 50  # of 4 KiB or of 2 MiB
    assert after < before / 10


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(freed_memory.sys, "platform", "win32")
    assert not freed_memory.keep_freed_memory()
