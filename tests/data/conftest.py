"""Tiny image files for the tests of `distill.data`."""

import io
import tarfile
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


@pytest.fixture
def tar_of() -> Callable[..., bytes]:
    """Return a function that makes a tar file of names and contents, in memory."""

    def make(files: dict[str, bytes], *, mode: str = "w") -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()

    return make


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test have a cache folder of its own."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
