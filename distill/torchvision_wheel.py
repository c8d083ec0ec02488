"""Lets torchvision import beside a CPU-only PyTorch when its wheel was built for CUDA.

The package index carries only CUDA builds of torchvision for Linux, whose compiled operators cannot
load next to a CPU build of PyTorch; the import then fails with "operator torchvision::nms does not
exist", although nothing here needs those operators. Declaring their names is enough. Packages of
this project that use torchvision import this module first.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

import torch

_DECLARED_BY_IMPORT = re.compile(r'register_fake\("torchvision::(\w+)"\)')


@cache
def declare_missing_operators() -> torch.library.Library | None:
    """Declare the operators that torchvision's import expects, if its extension cannot load.

    Returns:
        The library that owns the declarations (kept alive by the cache), or None when torchvision's
        own extension is usable and nothing had to be done.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or torch.version.cuda is not None:
        return None
    folder = Path(spec.origin).parent
    extension = folder / "_C.so"
    if not extension.exists():
        return None
    try:
        torch.ops.load_library(extension)
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in _DECLARED_BY_IMPORT.findall((folder / "_meta_registrations.py").read_text()):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


declare_missing_operators()
