"""Reads and writes network weights, strictly.

Files are untrusted: PyTorch checkpoints load with `weights_only=True`, safetensors hold no code.
Every weight of the network must be filled exactly once; what does not fit is listed by name. A
student's own file (`student.safetensors`) carries the network's name and input in its metadata, so
that it can be rebuilt from the file alone.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from distill.errors import DistillError
from distill.files import write_whole
from distill.networks import (
    EmbeddingNetwork,
    InputSpec,
    NetworkSpec,
    build_network,
    spec_metadata,
)

_METADATA_KEY = "distill"
_CONTAINERS = ("state_dict", "model", "model_state_dict", "student")
_MAX_LISTED = 8


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file or a PyTorch checkpoint.

    A checkpoint that nests its weights under `state_dict`, `model`, `model_state_dict` or `student`
    is unwrapped, and a `module.` that every key carries (DataParallel) is removed.

    Raises:
        DistillError: When the file is missing, damaged, needs code to be run, or holds no tensors.
    """
    if not path.is_file():
        raise DistillError(
            f"no weights file at {path}; give the path of a .safetensors or .pth file"
        )
    tensors = _read_safetensors(path) if _is_safetensors(path) else _read_checkpoint(path)
    if not tensors:
        raise DistillError(f"{path} holds no tensors, so it cannot be a network's weights")
    if all(key.startswith("module.") for key in tensors):
        return {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    return tensors


def load_weights(network: EmbeddingNetwork, path: Path) -> None:
    """Fill `network` from `path`; every weight exactly once.

    Raises:
        DistillError: With the missing, unexpected and differently shaped weights by name; the
            network is unchanged then.
    """
    spec = network.spec
    tensors: dict[str, Tensor] = {}
    for key, tensor in read_state_dict(path).items():
        if _starts_with_any(key, spec.skipped_keys):
            continue
        own_key = key.removeprefix(spec.weights_prefix)
        if own_key in tensors:
            raise DistillError(f"{path} holds two tensors for {own_key}, with and without a prefix")
        tensors[own_key] = tensor
    wanted = network.backbone.state_dict()
    unused_head = [
        key for key in tensors if key not in wanted and _starts_with_any(key, spec.head_keys)
    ]
    found = {key: tensor for key, tensor in tensors.items() if key not in unused_head}
    problems = mismatches(wanted, found)
    if problems:
        raise DistillError(
            f"{path} does not fit {spec.name}: {'; '.join(problems)}. Give weights of the same "
            "architecture (names as in torchvision or timm), or another network"
        )
    network.backbone.load_state_dict(found, strict=False)


def mismatches(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """List in words how two state dicts differ in names and shapes; empty when they fit.

    BatchNorm's `num_batches_tracked` may be absent: it does not influence an embedding.
    """
    missing = [k for k in wanted if k not in found and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in found if k not in wanted]
    shapes = [
        f"{k} is {tuple(found[k].shape)} in the file and {tuple(wanted[k].shape)} in the network"
        for k in wanted
        if k in found and found[k].shape != wanted[k].shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    return [f"{len(keys)} {what} ({_listed(keys)})" for what, keys in problems if keys]


def save_network(network: EmbeddingNetwork, path: Path) -> None:
    """Write the backbone's weights and the network's description to a safetensors file."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.backbone.state_dict().items()}
    metadata = {_METADATA_KEY: json.dumps(spec_metadata(network.spec))}
    write_whole(path, safetensors.torch.save(tensors, metadata=metadata))


def rebuild_network(path: Path, find_spec: Callable[[str], NetworkSpec]) -> EmbeddingNetwork:
    """Rebuild a network from a file that `save_network` wrote, in evaluation mode, on the CPU.

    Args:
        path: The file.
        find_spec: Describes the network of a name.

    Raises:
        DistillError: When there is no such file, it was not written by this toolkit or it does not
            fit.
    """
    if not path.exists():
        raise DistillError(f"there is no run directory or weights file at {path}")
    description = read_description(path)
    if description is None:
        raise DistillError(
            f"{path} does not say which network it holds (only a .safetensors file of this "
            "toolkit does); name the architecture with --student"
        )
    stored = description["input"]
    stored["mean"], stored["std"] = tuple(stored["mean"]), tuple(stored["std"])
    network = build_network(replace(find_spec(description["network"]), input=InputSpec(**stored)))
    load_weights(network, path)
    return network.eval()


def read_description(path: Path) -> dict[str, Any] | None:
    """Return the description that `save_network` stored in `path`, None for a foreign file."""
    if not path.is_file() or not _is_safetensors(path):
        return None
    with _opened(path) as file:
        metadata = file.metadata() or {}
    return json.loads(metadata[_METADATA_KEY]) if _METADATA_KEY in metadata else None


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _opened(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise DistillError(f"{path} is not a whole safetensors file ({error})") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        raise DistillError(
            f"{path} cannot be read without running code from it"
            + (f" (it asks for {wanted[1]})" if wanted else "")
            + ", which is refused; save its state dict alone, best as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise DistillError(
            f"{path} is not a whole PyTorch checkpoint; give a .pth or .safetensors file that is"
        ) from error
    while isinstance(content, Mapping):
        inner = next((name for name in _CONTAINERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        content = content[inner]
    return {}


def _starts_with_any(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key.startswith(prefix) for prefix in prefixes)


def _listed(keys: list[str]) -> str:
    rest = len(keys) - _MAX_LISTED
    return ", ".join(keys[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
