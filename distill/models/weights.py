"""Loads and saves the weights of networks, strictly, and hashes networks.

Every weight is filled exactly once, from the name in its layout (`distill.models.layout`);
mismatches are listed by name. A file of this toolkit (`student.safetensors`) has the network's name
and input in its metadata, so that the network can be rebuilt from the file alone, or, for a user's
own module, from the file and the module.
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
    """Read all tensors of a weights file by their names in the file.

    Raises:
        DistillError: The file is missing, damaged, needs to run code, or has no tensors.
    """
    with open_checkpoint(path) as file:
        if not file.shapes:
            raise DistillError(f"{path} holds no tensors, so it cannot be a network's weights")
        return {name: file.read(name) for name in file.shapes}


@torch.no_grad()
def load_weights(network: EmbeddingNetwork, path: Path) -> None:
    """Fill every weight of `network` from `path`.

    Raises:
        DistillError: Missing, unexpected or differently shaped weights, by name, with the network
            unchanged; or a damaged file, with the network partly filled.
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
        assert len(stored) == len(names), "two weights have the same source"
        found = {
            n: shape for n, shape in file.shapes.items() if n in stored or not layout.ignores(n)
        }
        problems = mismatches(stored, found)
        if problems:
            raise DistillError(
                f"{path} does not fit {network.spec.name}: {'; '.join(problems)}; use weights of "
                "the same architecture (published layout, or names as in torchvision or timm), or "
                "another network"
            )
        for key, name in names.items():
            if name in found:
                wanted[key].copy_(layout.converted(file.read(name)))


def mismatches(wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> list[str]:
    """Describe how the names and shapes in a file differ from those wanted; empty if they match.

    BatchNorm's `num_batches_tracked` may be missing, as it does not affect embeddings.
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
    """Rebuild a network from a file of `save_network`, in evaluation mode, on the CPU.

    Args:
        path: The file.
        find_spec: Returns the spec of a name.
        module: The user's own module, to load the weights into; None for a network that is built by
            name.
        image_size: Side of its input in pixels; None: as in the file.

    Raises:
        DistillError: The file is missing, was not written by this toolkit, does not match, or needs
            a module.
    """
    if not path.exists():
        raise DistillError(f"there is no run directory or weights file at {path}")
    description = read_description(path)
    if description is None:
        raise DistillError(
            f"{path} does not name its network (only a .safetensors file of this toolkit does); "
            "name the architecture with --student"
        )
    try:
        name = str(description["network"])
        stored = as_dataclass(InputSpec, description["input"])
    except (KeyError, TypeError, ValueError) as error:
        raise DistillError(
            f"{path} has an invalid description of its network; it is damaged or was written by a "
            "newer version: update distill, or make the file again"
        ) from error
    if image_size is not None:
        stored = replace(stored, image_size=image_size)
    if is_own_module(name):
        name = name.removeprefix(MODULE_PREFIX)
        if module is None:
            raise DistillError(
                f"{path} holds the weights of your own {name}, whose code is not in the file; "
                f'build it and pass it: distill.load_student("{path}", module=...)'
            )
        plain = module.backbone if isinstance(module, EmbeddingNetwork) else module
        network = wrap_module(plain, **vars(stored), name=name)
    elif module is not None:
        raise DistillError(f"{path} holds {name}, which is built by name; leave out module=")
    else:
        network = build_network(replace(find_spec(name), input=stored))
    load_weights(network, path)
    return network.eval()


def read_description(path: Path) -> Any:
    """Return the description that `save_network` stored in `path`; None for other files."""
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
        f"{file.path} is a TensorFlow checkpoint, which {spec.name} cannot be loaded from; use a "
        "PyTorch checkpoint or a safetensors file"
    )


def _listed(names: list[str], most: int) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def weights_hash(network: nn.Module) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and values of the state dict, in hexadecimal.

    It does not depend on the device and the memory format. One tensor is copied at a time.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        plain = tensor.detach().cpu().reshape(-1)  # in index order
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(plain.view(torch.uint8).numpy()))
    return digest.hexdigest()


def module_key(network: EmbeddingNetwork) -> str:
    """Return the key of a network in the cache of embeddings, in hexadecimal.

    For a network of the registries it is `weights_hash`. The code of a user's own module may change
    without its weights, so its key covers its class, its weights, the versions of torch,
    torchvision and timm, and the bits of its output on 16 fixed images.

    Raises:
        DistillError: The module has different outputs for the same images.
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
            "mode; a teacher must be deterministic: remove the randomness from its forward"
        )
    cls = type(network.backbone)
    versions = [f"{name} {installed_version(name)}" for name in ("torch", "torchvision", "timm")]
    digest = hashlib.sha256(
        "\n".join([f"{cls.__module__}.{cls.__qualname__}", weights, *versions]).encode()
    )
    digest.update(output.cpu().numpy().tobytes())
    return digest.hexdigest()
