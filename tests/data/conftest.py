"""Tiny image files for the tests of `distill.data`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_image(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a random image below `tmp_path`."""

    def write(name: str, size: tuple[int, int] = (12, 10), seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def truncate() -> Callable[[Path], Path]:
    """Return a function that cuts a file to half its length."""

    def cut(path: Path) -> Path:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return path

    return cut
