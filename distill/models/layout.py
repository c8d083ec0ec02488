"""How files name the weights of a network: for every weight its name in the file.

Going from the network to the file makes reading strict by construction: a weight has one source,
and what is left over in the file must be on the list of what is known not to be the network.

Both layouts have the same methods: `names` (the name in the file for every key of the network's
state dict), `stored_shape` (how a weight of a shape is stored), `converted` (a stored weight as the
network takes it) and `ignores` (whether a tensor of the file is known not to be the network's).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from torch import Tensor

UNUSED = "num_batches_tracked"  # of BatchNorm: no embedding depends on it, and files may lack it

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
    """The network's own names, possibly behind a prefix or with parts called otherwise.

    Attributes:
        prefix: Before every name of the network; a file in which nothing has it goes without.
        renamed: Beginnings of the network's names and what they are called instead, in files that
            have any of the latter.
        ignored: Beginnings of names that do not belong to the network (after the prefix or not).
    """

    kind: ClassVar = "pytorch"
    prefix: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def names(self, keys: Collection[str], found: Collection[str]) -> dict[str, str]:
        """Return the name in the file for every key.

        Args:
            keys: Of the network's state dict.
            found: The names that the file has.
        """
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
        """Return whether a name begins as one of `ignored`."""
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

    kind: ClassVar = "tensorflow"
    modules: Mapping[str, str]
    suffix: str = ""
    ignored: tuple[str, ...] = ()

    def names(self, keys: Collection[str], found: Collection[str]) -> dict[str, str]:
        """Return the variable for every key; what the file has does not matter."""
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
