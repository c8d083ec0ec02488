"""A hash that stands for the weights of a network.

Fills networks from files and writes them, strictly.

Every weight of a network is filled exactly once, from where its layout says
(`distill.models.layout`);
what does not fit is listed by name. A network's own file (`student.safetensors`) carries its name
and input in its metadata, so that it can be rebuilt from the file alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.models.checkpoints.open import open_checkpoint
from distill.models.checkpoints.safetensors_file import SUFFIX, SafetensorsFile, write_safetensors
from distill.models.checkpoints.tensor_file import TensorFile
from distill.models.layout import UNUSED, Layout, PyTorchLayout
from distill.models.networks import (
    EmbeddingNetwork,
    InputSpec,
    NetworkSpec,
    build_network,
    spec_metadata,
)


def weights_hash(network: nn.Module) -> str:
    """Return the SHA-256 of all weights and persistent buffers, in hexadecimal.

    It covers names, dtypes, shapes and values; device and memory order (channels last) do not
    matter. One tensor is copied at a time.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        plain = tensor.detach().cpu().reshape(-1)  # in the order of the indices, not of the memory
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(plain.view(torch.uint8).numpy()))
    return digest.hexdigest()


_MAX_LISTED, _MAX_SHAPES = 8, 3
Shape = tuple[int, ...]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a weights file under the names that it gives them.

    Raises:
        DistillError: When the file is missing, damaged, needs code to be run, or holds no tensors.
    """
    with open_checkpoint(path) as file:
        if not file.shapes:
            raise DistillError(f"{path} holds no tensors, so it cannot be a network's weights")
        return {name: file.read(name) for name in file.shapes}


@torch.no_grad()
def load_weights(network: EmbeddingNetwork, path: Path) -> None:
    """Fill `network` from `path`; every weight exactly once.

    Raises:
        DistillError: With the missing, unexpected and differently shaped weights by name; the
            network is unchanged then. Or a damaged file; the network is half filled then.
    """
    wanted = network.backbone.state_dict()
    with open_checkpoint(path) as file:
        layout = _layout_of(network.spec, file)
        names = layout.names(list(wanted), file.shapes)
        stored = {
            names[key]: layout.stored_shape(shape)
            for key, shape in shapes(wanted).items()
            if key in names
        }
        assert len(stored) == len(names), "no two weights come from one tensor"
        found = {
            n: shape for n, shape in file.shapes.items() if n in stored or not layout.ignores(n)
        }
        problems = mismatches(stored, found)
        if problems:
            raise DistillError(
                f"{path} does not fit {network.spec.name}: {'; '.join(problems)}. Give weights of "
                "the same architecture (published layout, or names as in torchvision or timm), or "
                "another network"
            )
        for key, name in names.items():
            if name in found:
                wanted[key].copy_(layout.converted(file.read(name)))


def mismatches(wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> list[str]:
    """List in words how the tensors of a file differ in names and shapes; empty when they fit.

    BatchNorm's `num_batches_tracked` may be absent: it does not influence an embedding.

    Args:
        wanted: The shape of every weight by its name in the file.
        found: What the file has.
    """
    missing = [name for name in wanted if name not in found and not name.endswith(UNUSED)]
    unexpected = [name for name in found if name not in wanted]
    shapes = [
        f"{name} is {tuple(found[name])} in the file and {tuple(shape)} in the network"
        for name, shape in wanted.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    problems = [
        (missing, "missing", _MAX_LISTED),
        (unexpected, "unexpected", _MAX_LISTED),
        (shapes, "of another shape", _MAX_SHAPES),
    ]
    return [
        f"{len(names)} {what} ({_listed(names, most)})" for names, what, most in problems if names
    ]


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Return the shape of every tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def save_network(network: EmbeddingNetwork, path: Path) -> None:
    """Write the backbone's weights and the network's description to a safetensors file."""
    write_safetensors(path, network.backbone.state_dict(), spec_metadata(network.spec))


def rebuild_network(
    path: Path, find_spec: Callable[[str], NetworkSpec], *, image_size: int | None = None
) -> EmbeddingNetwork:
    """Rebuild a network from a file that `save_network` wrote, in evaluation mode, on the CPU.

    Args:
        path: The file.
        find_spec: Describes the network of a name.
        image_size: Side of its input in pixels; None takes the side that the file names.

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
    name, stored = _checked(description, path)
    spec = replace(find_spec(name), input=stored)
    network = build_network(spec, image_size=image_size)
    load_weights(network, path)
    return network.eval()


def read_description(path: Path) -> Any:
    """Return the description that `save_network` stored in `path`, None for a foreign file."""
    if not path.is_file() or path.suffix != SUFFIX:
        return None
    return SafetensorsFile(path).description


def _layout_of(spec: NetworkSpec, file: TensorFile) -> Layout:
    """Return how the file names the network's weights."""
    kind = "tensorflow" if file.kind == "tensorflow" else "pytorch"
    if spec.layout.kind == kind:
        return spec.layout
    if kind == "pytorch":
        return PyTorchLayout(ignored=("fc.",))  # a conversion, perhaps with a classifier
    raise DistillError(
        f"{file.path} is a TensorFlow checkpoint, and how those name the weights of {spec.name} is "
        "not known; give a PyTorch checkpoint or a safetensors file"
    )


def _checked(description: Any, path: Path) -> tuple[str, InputSpec]:
    """Return name and input of the network that a description speaks of."""
    try:
        stored = dict(description["input"])
        stored["mean"], stored["std"] = tuple(stored["mean"]), tuple(stored["std"])
        return str(description["network"]), InputSpec(**stored)
    except (KeyError, TypeError, ValueError) as error:
        raise DistillError(
            f"{path} describes its network in a way that is not understood; it is damaged or was "
            "written by a newer version: update, or make it again"
        ) from error


def _listed(names: list[str], most: int) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
