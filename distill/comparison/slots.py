"""What each of several runs at a time gets of the machine.

Two PyTorch processes that each start a thread for every core slow each other many times over, and
two on one GPU share its memory. So a run gets its share of the cores, and a GPU of its own where
there is more than one.
"""

from __future__ import annotations

import os

from distill.data.loader import num_usable_cores
from distill.errors import DistillError


def slot_environments(jobs: int) -> list[dict[str, str]]:
    """Return what the environment of a run's process has beyond ours, for each slot.

    Args:
        jobs: Runs at a time; 1: nothing is shared, nothing set.

    Raises:
        DistillError: Fewer than one.
    """
    if jobs < 1:
        raise DistillError(f"--jobs is {jobs}, it must be at least 1 (runs at a time)")
    if jobs == 1:
        return [{}]
    threads = str(max(1, num_usable_cores() // jobs))
    cores = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads}
    devices = _visible_devices()
    if len(devices) < 2:
        return [cores] * jobs
    return [{**cores, "CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} for slot in range(jobs)]


def _visible_devices() -> list[str]:
    """Return the names of the GPUs that this process may use."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if named is None else [name.strip() for name in named.split(",")]
    number = torch.cuda.device_count()
    return names[:number] if names is not None else [str(index) for index in range(number)]
