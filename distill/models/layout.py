"""How weights files name the weights of a network.

A layout maps every weight of the network to one name in the file, so that reading is strict: each
weight has one source, and every other tensor of the file must be known not to belong to the
network. Both layouts have the same methods: `names` (the name in the file for every key of the
network's state dict), `stored_shape` (the shape in the file), `converted` (a stored tensor in the
network's shape) and `ignores` (whether a tensor of the file does not belong to the network).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from torch import Tensor

UNUSED = "num_batches_tracked"  # of BatchNorm: does not affect embeddings, and files may lack it

_OF_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_OF_KERNEL = {"weight": "kernel", "bias": "bias"}
_STORED = {0: (), 1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}  # by number of dimensions
_CONVERTED = {0: (), 1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}


@dataclass(frozen=True)
class PyTorchLayout:
    """The network's own names, optionally with a prefix or with renamed parts."""

    kind: ClassVar = "pytorch"
    prefix: str = ""  # of every weight, unless no name in the file has it
    renamed: Mapping[str, str] = field(default_factory=dict)  # prefix in the network: in the file
    ignored: tuple[str, ...] = ()  # prefixes of other tensors, after `prefix` or not

    def names(self, keys: Collection[str], found: Collection[str]) -> dict[str, str]:
        """Return the name in the file for every key, given the names found in the file."""
        prefix = self.prefix if any(name.startswith(self.prefix) for name in found) else ""
        renamed = {
            own: other
            for own, other in self.renamed.items()
            if any(name.startswith(prefix + other) for name in found)
        }
        names = {}
        for key in keys:
            own = next((own for own in renamed if key.startswith(own)), "")
            names[key] = prefix + renamed.get(own, "") + key.removeprefix(own)
        return names

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return `shape`."""
        return shape

    def converted(self, tensor: Tensor) -> Tensor:
        """Return `tensor`."""
        return tensor

    def ignores(self, name: str) -> bool:
        """Return whether a name starts with one of `ignored`."""
        return name.removeprefix(self.prefix).startswith(self.ignored) or name.startswith(
            self.ignored
        )


@dataclass(frozen=True)
class TensorFlowLayout:
    """Variables of a TensorFlow checkpoint, with kernels H x W x in x out or in x out."""

    kind: ClassVar = "tensorflow"
    modules: Mapping[str, str]  # module of the network: prefix of its variables
    suffix: str = ""  # of all variables
    ignored: tuple[str, ...] = ()  # regular expressions of the full names of other variables

    def names(self, keys: Collection[str], found: Collection[str]) -> dict[str, str]:
        """Return the name in the file for every key; `found` is not used."""
        norms = {key.removesuffix(".running_mean") for key in keys if key.endswith("running_mean")}
        names = {}
        for key in keys:
            module, _, leaf = key.rpartition(".")
            if leaf != UNUSED:
                leaf = (_OF_NORM if module in norms else _OF_KERNEL)[leaf]
                names[key] = f"{self.modules[module]}/{leaf}{self.suffix}"
        return names

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return `shape` with its dimensions in TensorFlow's order."""
        return tuple(shape[dimension] for dimension in _STORED[len(shape)])

    def converted(self, tensor: Tensor) -> Tensor:
        """Return a variable with its dimensions in PyTorch's order."""
        return tensor.permute(_CONVERTED[tensor.ndim])

    def ignores(self, name: str) -> bool:
        """Return whether one of `ignored` matches the whole name."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


Layout: TypeAlias = PyTorchLayout | TensorFlowLayout
