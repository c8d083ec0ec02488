"""Safetensors files, written with a description and a checksum in their metadata.

The format has no checksum. Files of this toolkit have a CRC-32C of the description and all tensors,
which is checked when they are opened; damage to the tensors of other files cannot be detected.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from distill.errors import DistillError
from distill.files import atomic_path
from distill.models.checkpoints.tensor_file import TensorFile
from distill.parsing import parse_json

SUFFIX = ".safetensors"
_DESCRIPTION, _CHECKSUM = "distill", "crc32c"


class SafetensorsFile(TensorFile):
    """An open safetensors file.

    Attributes:
        description: The description that this toolkit wrote; None in other files.

    Args:
        path: The file.
        verify: Read all tensors and verify the checksum.

    Raises:
        DistillError: It is missing or damaged, or its checksum is wrong.
    """

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        try:
            self._file: Any = safetensors.safe_open(path, framework="pt")
            metadata = self._file.metadata() or {}
            names = sorted(self._file.keys())
            shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in names}
            description = metadata.get(_DESCRIPTION)
            self.description = None if description is None else parse_json(description)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise _not_whole(path, error) from error
        super().__init__(path, "pytorch", shapes)
        stored = metadata.get(_CHECKSUM)
        if not verify or stored is None:
            return
        tensors = ((name, self.read(name)) for name in names)
        if stored != _checksum(description or "", tensors):
            raise DistillError(
                f"the checksum of {path} is wrong: the file is damaged; make or fetch it again"
            )

    def read(self, name: str) -> Tensor:
        """Return a tensor."""
        try:
            return self._file.get_tensor(name)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise _not_whole(self.path, error) from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], description: Any) -> None:
    """Write tensors with a description and a checksum of both, atomically.

    Args:
        path: The file.
        tensors: By name; tensors that share memory (tied weights) are all written.
        description: Anything that JSON can represent.

    Raises:
        OSError: The file cannot be written.
    """
    tensors = _unshared({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    text = json.dumps(description)
    checksum = _checksum(text, sorted(tensors.items()))
    metadata = {_DESCRIPTION: text, _CHECKSUM: checksum}
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata=metadata)
        except safetensors.SafetensorError as error:
            raise _disk_error(error, temporary) from error


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory with another one, which the format does not allow."""
    seen: set[int] = set()
    copies = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        copies[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return copies


def _checksum(description: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    checksum = google_crc32c.Checksum(description.encode())
    for name, tensor in tensors:
        checksum.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            checksum.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return checksum.hexdigest().decode()


def _disk_error(error: Exception, path: Path) -> Exception:
    """Return the operating system's error, which the library passes on only as text."""
    code = re.search(r"os error (\d+)", str(error))
    return error if code is None else OSError(int(code[1]), os.strerror(int(code[1])), str(path))


def _not_whole(path: Path, error: Exception) -> DistillError:
    return DistillError(f"{path} is not a whole safetensors file ({error}); fetch it again")
