"""Time calls in turn on a CPU, and the large matrix products to compare them with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from contenders import DTYPES

from distill.kernels.blocked import NUM_IMAGES, similarities

Calls = dict[str, Callable[[], object]]
BY = ("mm", "oneDNN")


def median_seconds(calls: Calls, repeats: int) -> dict[str, float]:
    """Time every call in turn, `repeats` rounds after one unmeasured round; return medians."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            result = call()
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
            del result
    return {name: statistics.median(values) for name, values in seconds.items()}


def product_dtype(banks: str) -> str:
    """Return the dtype in which banks are multiplied on a CPU: float16 is widened first."""
    return "fp32" if banks == "fp16" else banks


def matrix_products(dtype: str, side: int) -> Calls:
    """Return a call for each of `BY` that multiplies two matrices, side x side each.

    oneDNN is called as the blocked loss calls it; it asks for sides in multiples of 16.
    """
    assert side % NUM_IMAGES == 0
    a, b, out = (torch.rand(side, side).to(DTYPES[dtype]) for _ in range(3))
    return {
        f"mm {dtype}": lambda: torch.mm(a, b, out=out),
        f"oneDNN {dtype}": lambda: similarities(a, b),
    }
