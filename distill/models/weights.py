"""Fills networks from weights files and writes them, strictly; hashes what a network computes.

Every weight of a network is filled exactly once, from where its layout says
(`distill.models.layout`); what does not fit is listed by name. A file that this toolkit writes
(`student.safetensors`) carries the network's name and input in its metadata, so that the network
can be rebuilt from the file alone; of a user's own module, from the file and the module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.device import installed_version
from distill.errors import DistillError
from distill.models.checkpoints.open import open_checkpoint
from distill.models.checkpoints.safetensors import SUFFIX, SafetensorsFile, write_safetensors
from distill.models.checkpoints.tensor_file import TensorFile
from distill.models.layout import UNUSED, Layout, PyTorchLayout
from distill.models.networks import (
    MODULE_PREFIX,
    EmbeddingNetwork,
    InputSpec,
    NetworkSpec,
    build_network,
    evaluation_mode,
    is_own_module,
    wrap_module,
)
from distill.parsing import as_dataclass

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
    description = {"network": network.spec.name, "input": vars(network.spec.input)}
    write_safetensors(path, network.backbone.state_dict(), description)


def rebuild_network(
    path: Path,
    find_spec: Callable[[str], NetworkSpec],
    *,
    module: nn.Module | None = None,
    image_size: int | None = None,
) -> EmbeddingNetwork:
    """Rebuild a network from a file that `save_network` wrote, in evaluation mode, on the CPU.

    Args:
        path: The file.
        find_spec: Describes the network of a name.
        module: The user's own module that the file holds the weights of, which are loaded into
            it; None for a network that is built by name.
        image_size: Side of its input in pixels; None takes the side that the file names.

    Raises:
        DistillError: There is no such file, it was not written by this toolkit, it does not fit, or
            it needs a module.
    """
    if not path.exists():
        raise DistillError(f"there is no run directory or weights file at {path}")
    description = read_description(path)
    if description is None:
        raise DistillError(
            f"{path} does not say which network it holds (only a .safetensors file of this "
            "toolkit does); name the architecture with --student"
        )
    name, stored = _name_and_input(description, path)
    if image_size is not None:
        stored = replace(stored, image_size=image_size)
    if is_own_module(name):
        network = _own_network(path, name, module, stored)
    elif module is not None:
        raise DistillError(f"{path} holds {name}, which is built by name; leave out module=")
    else:
        network = build_network(replace(find_spec(name), input=stored))
    load_weights(network, path)
    return network.eval()


def _own_network(
    path: Path, name: str, module: nn.Module | None, stored: InputSpec
) -> EmbeddingNetwork:
    if module is None:
        raise DistillError(
            f"{path} holds the weights of your own {name.removeprefix(MODULE_PREFIX)}, whose code "
            f'is not in the file; build it and pass it: distill.load_student("{path}", module=...)'
        )
    plain = module.backbone if isinstance(module, EmbeddingNetwork) else module
    return wrap_module(plain, **vars(stored), name=name.removeprefix(MODULE_PREFIX))


def read_description(path: Path) -> Any:
    """Return the description that `save_network` stored in `path`, None for a foreign file."""
    if not path.is_file() or path.suffix != SUFFIX:
        return None
    return SafetensorsFile(path).description


def _layout_of(spec: NetworkSpec, file: TensorFile) -> Layout:
    """Return how the file names the network's weights."""
    if file.kind == spec.layout.kind:
        return spec.layout
    if file.kind == "pytorch":
        return PyTorchLayout(ignored=("fc.",))  # a conversion, perhaps with a classifier
    raise DistillError(
        f"{file.path} is a TensorFlow checkpoint, and how those name the weights of {spec.name} is "
        "not known; give a PyTorch checkpoint or a safetensors file"
    )


def _name_and_input(description: Any, path: Path) -> tuple[str, InputSpec]:
    """Return name and input of the network that a description speaks of."""
    try:
        return str(description["network"]), as_dataclass(InputSpec, description["input"])
    except (KeyError, TypeError, ValueError) as error:
        raise DistillError(
            f"{path} describes its network in a way that is not understood; it is damaged or was "
            "written by a newer version: update, or make it again"
        ) from error


def _listed(names: list[str], most: int) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


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


def module_key(network: EmbeddingNetwork) -> str:
    """Return what stands for a network in the keys of cached embeddings, in hexadecimal.

    A network of the registries is its weights (`weights_hash`). Of a user's own module the code
    may change while the weights do not: its key covers its class, its weights, the versions of
    torch, torchvision and timm, and its output on 16 fixed images, bit by bit.

    Raises:
        DistillError: It gives two different outputs for the same images.
    """
    weights = weights_hash(network)
    if not is_own_module(network.spec.name):
        return weights
    side = network.input.image_size
    images = torch.randint(
        256, (16, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).to(network.mean.device)
    reproducible = torch.backends.cudnn.flags(benchmark=False, deterministic=True)
    with evaluation_mode(network), torch.no_grad(), reproducible:
        output, again = network(images), network(images)
    if not torch.allclose(output, again, equal_nan=True):
        raise DistillError(
            f"{network.spec.name} gives different embeddings for the same images in evaluation "
            "mode; a teacher must be deterministic: take the randomness out of its forward"
        )
    cls = type(network.backbone)
    versions = [f"{name} {installed_version(name)}" for name in ("torch", "torchvision", "timm")]
    digest = hashlib.sha256(
        "\n".join([f"{cls.__module__}.{cls.__qualname__}", weights, *versions]).encode()
    )
    digest.update(output.cpu().numpy().tobytes())
    return digest.hexdigest()
