"""What every reader returns: named tensors, read one at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor


class TensorFile(ABC):
    """Named tensors of one file; a context manager that closes it.

    Attributes:
        path: As the user gave it.
        kind: Which library's habits its names follow.
        shapes: The shape of every tensor by name.
    """

    def __init__(
        self,
        path: Path,
        kind: Literal["pytorch", "tensorflow"],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.path = path
        self.kind = kind
        self.shapes = dict(shapes)

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Return a tensor of `shapes`, on the CPU, in the file's dtype.

        Raises:
            DistillError: Its bytes are damaged.
        """

    def close(self) -> None:  # noqa: B027 (most files have nothing to release)
        """Release what the file holds."""

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
