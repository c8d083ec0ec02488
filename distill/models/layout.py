"""How files name the weights of a network: for every weight its name in the file.

Going from the network to the file makes reading strict by construction: a weight has one source,
and what is left over in the file must be on the list of what is known not to be the network.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from distill.models.checkpoints.tensor_file import Kind

UNUSED = "num_batches_tracked"  # of BatchNorm: no embedding depends on it, and files may lack it


class Layout(Protocol):
    """The names and the storage of a network's weights in one family of files."""

    @property
    def kind(self) -> Kind:
        """The kind of file that is laid out so; others name weights as the network does."""
        ...

    def names(self, keys: Collection[str], found: Collection[str]) -> dict[str, str]:
        """Return the name in the file for every key of the network's state dict.

        Args:
            keys: Of the network.
            found: The names that the file has.
        """
        ...

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return how a weight of this shape is stored."""
        ...

    def converted(self, tensor: Tensor) -> Tensor:
        """Return a stored weight as the network takes it."""
        ...

    def ignores(self, name: str) -> bool:
        """Tell whether a tensor of the file is known not to belong to the network."""
        ...


@dataclass(frozen=True)
class PyTorchLayout:
    """The network's own names, possibly behind a prefix or with parts called otherwise.

    Attributes:
        prefix: Before every name of the network; a file in which nothing has it goes without.
        renamed: Beginnings of the network's names and what they are called instead, in files that
            have any of the latter.
        ignored: Beginnings of names that do not belong to the network (after the prefix or not).
    """

    prefix: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    kind: Kind = "pytorch"

    def names(self, keys: Collection[str], found: Collection[str]) -> dict[str, str]:
        """Return the name in the file for every key; see `Layout`."""
        prefix = self.prefix if any(name.startswith(self.prefix) for name in found) else ""
        renamed = {
            own: other
            for own, other in self.renamed.items()
            if any(name.startswith(prefix + other) for name in found)
        }
        return {key: prefix + _renamed(key, renamed) for key in keys}

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return `shape`."""
        return shape

    def converted(self, tensor: Tensor) -> Tensor:
        """Return `tensor`."""
        return tensor

    def ignores(self, name: str) -> bool:
        """Tell whether a name begins as one of `ignored`."""
        return name.removeprefix(self.prefix).startswith(self.ignored) or name.startswith(
            self.ignored
        )


@dataclass(frozen=True)
class TensorFlowLayout:
    """Variables of a TensorFlow checkpoint, layer by layer.

    Convolution kernels are stored H x W x in x out, dense ones in x out: the reverse of PyTorch's
    order of dimensions for the latter, and the cyclic one for the former.

    Attributes:
        modules: For every module of the network that has weights what its variables begin with.
        suffix: What all variables end with, after the last part of their own name.
        ignored: Regular expressions of whole names that do not belong to the network.
    """

    modules: Mapping[str, str]
    suffix: str = ""
    ignored: tuple[str, ...] = ()
    kind: Kind = "tensorflow"

    def names(self, keys: Collection[str], found: Collection[str]) -> dict[str, str]:
        """Return the variable for every key; see `Layout`."""
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
        """Tell whether one of `ignored` matches the whole name."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


_OF_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_OF_KERNEL = {"weight": "kernel", "bias": "bias"}
_STORED = {0: (), 1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}
_CONVERTED = {0: (), 1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}


def _renamed(key: str, renamed: Mapping[str, str]) -> str:
    for own, other in renamed.items():
        if key.startswith(own):
            return other + key.removeprefix(own)
    return key
