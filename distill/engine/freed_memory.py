"""Keeps the memory that tensors free on a CPU for the tensors of the next step.

glibc hands an array of more than 32 MiB back to the system when it is freed, and the system fills
the next one with zeros, page by page, on its first use. Every step of a network with large layers
frees and takes as much as it weighs: a step of AlexNet at 64 px measured 1.4 times faster with its
memory kept, for an eighth more of it (`tools/bench_freed_memory.py`).
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h numbers what mallopt sets
_NEVER = -1
# bytes; fc6 of AlexNet has 144 MiB. Before an aligned array fits where one like it was, glibc may
# hold several times its size, which the embeddings of a large set should not.
_LARGEST_KEPT = 256 * 2**20


def keep_freed_memory() -> bool:
    """Let this process keep what it frees in arrays up to 256 MiB; False where that cannot be set.

    It can with glibc from 2.35 on (Linux).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return bool(
        mallopt and mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_TRIM_THRESHOLD, _NEVER)
    )
