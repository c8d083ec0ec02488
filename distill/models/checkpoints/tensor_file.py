"""The interface of all readers of weights files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor


class TensorFile(ABC):
    """Named tensors of one file; a context manager that closes it.

    Attributes:
        path: As given by the user.
        kind: The library whose naming it follows.
        shapes: The shape of every tensor by name.
    """

    def __init__(
        self,
        path: Path,
        kind: Literal["pytorch", "tensorflow"],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.path, self.kind, self.shapes = path, kind, dict(shapes)

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Return a tensor on the CPU in the file's dtype; `DistillError` if it is damaged."""

    def close(self) -> None:  # noqa: B027 (most files have nothing to release)
        """Release the file."""

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
