"""Refuses loaders whose batches would not fit into shared memory, where they are handed over.

A container has 64 MiB of it unless told otherwise; a loader that finds none left dies of a bus
error, without a word of what was missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from distill.errors import DistillError

_PLACE = Path("/dev/shm")
_PREFETCHED = 2  # batches that a loader has ready, PyTorch's default
_IN_USE = 2  # batches that are waited for and trained on


def require_shared_memory(
    batch_size: int, view_sizes: Sequence[int], num_workers: int, *, num_processes: int = 1
) -> None:
    """Refuse more loaders than shared memory has room for.

    Args:
        batch_size: Images of a batch in one process.
        view_sizes: Sides in pixels of the views of an image.
        num_workers: Processes that load images, of one process.
        num_processes: That train on this machine.

    Raises:
        DistillError: Naming what is needed, what there is and what to do.
    """
    if num_workers == 0 or not _PLACE.is_dir():
        return
    a_batch = batch_size * sum(3 * side * side for side in view_sizes)
    needed = num_processes * (num_workers * _PREFETCHED + _IN_USE) * a_batch
    free = shutil.disk_usage(_PLACE).free
    if needed > free:
        raise DistillError(
            f"{num_workers} loaders with batches of {batch_size} hand over up to "
            f"{_mib(needed)} at a time and {_PLACE} has {_mib(free)} left; lower --num-workers or "
            "--batch-size, or give the container more (docker run --shm-size)"
        )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
