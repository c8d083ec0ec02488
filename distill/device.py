"""The device that networks run on: which one, in which precision, and how much memory it has."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib import metadata
from typing import Literal

import torch

from distill.errors import DistillError


def pick_device(name: str) -> torch.device:
    """Return the device called `name` (`auto`: a CUDA device when there is one).

    Raises:
        DistillError: When the device is unknown to PyTorch or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DistillError(
            f"--device {name} is unknown; allowed: auto, cpu, cuda, cuda:N"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise DistillError(f"--device {name} is not supported; allowed: auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DistillError(
            f"--device {name} is not there: this machine has {torch.cuda.device_count()} CUDA "
            "devices; use --device cpu"
        )
    return device


@cache
def require_torchvision() -> None:
    """Refuse a torchvision that was built for another torch: its operators cannot be loaded.

    Raises:
        DistillError: It is missing or does not fit.
    """
    try:
        from torchvision import extension

        fits = extension._has_ops()
    except (ImportError, OSError, RuntimeError):  # an operator is registered that is not there
        fits = False
    if not fits:
        ours, theirs = installed_version("torchvision"), installed_version("torch")
        raise DistillError(
            f"torchvision {ours} does not fit torch {theirs}: its "
            "operators cannot be loaded; install a matching pair, such as torch 2.14.1 with "
            "torchvision 0.29.1"
        )


def installed_version(package: str) -> str:
    """Return the version of an installed package, "not installed" where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def make_deterministic(wanted: bool) -> None:
    """Let PyTorch use only algorithms that give the same bits every time, or any of them.

    Operations without such an algorithm then raise where they are called.
    """
    if wanted:  # read by cuBLAS when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = False


def pick_precision(
    name: Literal["auto", "fp32", "bf16"], device: torch.device
) -> Literal["fp32", "bf16"]:
    """Return `fp32` or `bf16`; `auto` takes bf16 where the hardware multiplies in it.

    On a CPU with bf16 instructions a ResNet-18 step at 64 px measured 1.8 times faster than in
    fp32; on one without, bf16 is emulated and slower.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if has_bf16 else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which networks run; parameters and statistics stay float32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute in float32 to its last digits: no autocast, no TF32 in convolutions, no chance.

    cuDNN's convolutions are in TF32 by default, whose 10 bits would drown the difference between
    the embeddings of two images that are almost the same.
    """
    exact = torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False
    )
    with torch.autocast(device.type, enabled=False), exact:
        yield


def images_per_pass(image_size: int, device: torch.device) -> int:
    """Return how many images of a side in pixels to embed at once.

    On a CPU a pass is fastest while its maps stay in the cache: EfficientNet-Lite0 at 224 px
    measured 182 images/s in passes of 32 and 78 images/s in passes of 256.
    """
    pixels = 256 * 224**2 if device.type == "cuda" else 32 * 224**2
    return max(8, pixels // image_size**2)


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def require_memory(num_bytes: int, device: torch.device, *, what: str, remedy: str) -> None:
    """Refuse what would not fit into nine tenths of the free memory of `device`.

    Raises:
        DistillError: Naming the need, what is free, and the remedy.
    """
    free = free_memory(device)
    if num_bytes > 0.9 * free:
        raise DistillError(
            f"{what} needs {num_bytes / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free on "
            f"{device}; {remedy}"
        )


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h numbers what mallopt sets
_NEVER = -1
# bytes; fc6 of AlexNet has 144 MiB. Before an aligned array fits where one like it was, glibc may
# hold several times its size, which the embeddings of a large set should not.
_LARGEST_KEPT = 256 * 2**20


def keep_freed_memory() -> bool:
    """Let this process keep what it frees in arrays up to 256 MiB; False where that cannot be set.

    glibc hands an array of more than 32 MiB back to the system when it is freed, and the system
    fills the next one with zeros, page by page. Every step of a network with large layers frees and
    takes as much as it weighs: a step of AlexNet at 64 px measured 1.4 times faster with its memory
    kept, for an eighth more of it (`tools/bench_freed_memory.py`). Needs glibc from 2.35 on.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return bool(
        mallopt and mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_TRIM_THRESHOLD, _NEVER)
    )
