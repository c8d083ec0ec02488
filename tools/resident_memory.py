"""Measure in a fresh process by how much a call raises the peak resident set (Linux)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_RESET = Path("/proc/self/clear_refs")


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Return `function(*arguments)`, evaluated in a process that ends afterwards.

    The function stands at the top level of a module; arguments and result can be pickled.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def can_measure() -> bool:
    """Return whether the system lets a process reset its peak."""
    return _RESET.exists()


def peak_growth(call: Callable[[], object]) -> int:
    """Return the bytes that `call` adds to this process's resident set (VmHWM, reset before)."""
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not look like a saving
    _RESET.write_text("5")
    before = status_bytes("VmRSS")
    call()
    return status_bytes("VmHWM") - before


def status_bytes(field: str) -> int:
    """Return bytes: `VmRSS` now, `RssAnon` of these without files, `VmHWM` at the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)
