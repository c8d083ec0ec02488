"""PyTorch checkpoints, loaded with `weights_only=True`.

Besides tensors and plain containers only `argparse.Namespace` is allowed, as published checkpoints
keep their options in it; errors name any other class. The zip format (PyTorch 1.6 and newer) has
CRC-32s, which are checked here because PyTorch ignores them. The older format has none.
"""

from __future__ import annotations

import argparse
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.errors import DistillError
from distill.models.checkpoints.tensor_file import TensorFile

_CONTAINERS = ("state_dict", "model", "model_state_dict", "student")
_ALLOWED: list[Any] = [argparse.Namespace]
_DATA_PARALLEL = "module."


class PyTorchFile(TensorFile):
    """A loaded PyTorch checkpoint.

    Weights nested under `state_dict`, `model`, `model_state_dict` or `student` are unwrapped, and a
    prefix `module.` of all names (DataParallel) is removed.

    Raises:
        DistillError: It is damaged, needs to run code, or has no tensors.
    """

    def __init__(self, path: Path) -> None:
        tensors = _unwrapped(_load(path))
        if not tensors:
            raise DistillError(f"{path} holds no tensors, so it cannot be a network's weights")
        if all(name.startswith(_DATA_PARALLEL) for name in tensors):
            tensors = {name.removeprefix(_DATA_PARALLEL): t for name, t in tensors.items()}
        self._tensors = tensors
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        super().__init__(path, "pytorch", shapes)

    def read(self, name: str) -> Tensor:
        """Return a tensor."""
        return self._tensors[name]


def is_zip_of_pytorch(path: Path) -> bool:
    """Return whether a zip archive is a PyTorch checkpoint, by the names in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
    return any(name.endswith(("/data.pkl", "/version")) for name in names)


def _load(path: Path) -> Any:
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _check_zip(path)
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except MemoryError as error:  # the sizes in the file may be wrong
        raise DistillError(
            f"{path} needs more memory than there is; free some, or fetch the file again"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        wanted = re.search(r"GLOBAL (\S+)|Unsupported class (\S+)", str(error))
        if wanted:
            raise DistillError(
                f"{path} cannot be read without running code from it (it asks for "
                f"{wanted[1] or wanted[2]}), which is refused; save only its state dict, best "
                "as safetensors"
            ) from error
        raise DistillError(
            f"{path} is not a whole PyTorch checkpoint; give a .pth or .safetensors file that is"
        ) from error


def _check_zip(path: Path) -> None:
    """Compare every member with its CRC-32."""
    with zipfile.ZipFile(path) as archive:
        is_stored = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
        if not is_stored or archive.testzip() is not None:  # PyTorch does not compress
            raise zlib.error("a member is damaged")


def _unwrapped(content: Any) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = next((name for name in _CONTAINERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        content = content[inner]
    return {}
