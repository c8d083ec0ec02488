"""Small image folders and weights that many tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)  # two test processes share two cores

ORACLES = Path(__file__).parent / "oracles"
TINY_STUDENT = "timm:test_resnet"  # 0.5 M parameters, embeds 32 px images in a millisecond


@pytest.fixture(scope="session")
def oracles() -> Path:
    """Folder of what the original programs computed."""
    return ORACLES


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes `train/` and `val/` class folders of coloured 24 px images.

    Classes differ in hue, images of a class in noise, so that even pixels find their neighbours.
    """

    def make(
        name: str = "photos", *, num_train: int = 12, num_val: int = 4, classes: int = 3
    ) -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / name
        for split, number in (("train", num_train), ("val", num_val)):
            for label in range(classes if number else 0):
                folder = root / split / f"class{label}"
                folder.mkdir(parents=True)
                for i in range(number):
                    pixels = rng.integers(0, 60, size=(24, 24, 3))
                    pixels[..., label % 3] += 150
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.png")
        return root

    return make
