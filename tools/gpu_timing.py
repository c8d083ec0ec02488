"""Time calls on a GPU, measure their memory, and name the machine.

Method of `milliseconds`: triton.testing.do_bench. After a warm-up, every run follows a write over
the whole L2 cache and lies between two CUDA events of its own; the median of the runs of a fifth of
a second, at least one. Launches count where the device waits for them. On a CPU, where the kernels
are interpreted, one run by the clock: it shows that the program works and nothing else.
"""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable

import torch

MEASURED_MS = 200


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the time of a call, which is run several times; see above."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return do_bench(call, rep=MEASURED_MS, return_mode="median")
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Return the device memory that a call takes at its peak beyond what is held already.

    Results of the call count. None on a CPU.
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    del result
    return torch.cuda.max_memory_allocated(device) - before


def machine(device: torch.device) -> dict[str, str | None]:
    """Return what a reader of the numbers must know of device and software."""
    import triton

    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "driver": _driver() if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.splitlines()[0].strip()
