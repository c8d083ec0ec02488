"""Tiny caches for the tests of the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.embeddings import store
from distill.embeddings.store import Contents, EmbeddingStore, encode


@pytest.fixture
def make_contents() -> Callable[..., Contents]:
    """Return a function that describes a cache, with what is given changed."""

    def make(**changes: Any) -> Contents:
        given: dict[str, Any] = {
            "network": "pixels",
            "weights": "a" * 64,
            "image_size": 8,
            "crop_fraction": 0.875,
            "interpolation": "bilinear",
            "mean": (0.1, 0.2, 0.3),
            "std": (1.0, 1.0, 1.0),
            "images": "photos/train",
            "image_fingerprint": "b" * 64,
            "precision": "fp32",
            "dtype": "fp16",
            "shape": (30, 5),
        }
        return Contents(**{**given, **changes})

    return make


@pytest.fixture
def make_store(
    tmp_path: Path, make_contents: Callable[..., Contents], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[EmbeddingStore, np.ndarray]]:
    """Return a function that makes a cache of 4 shards of 8 rows, and the rows it was given."""
    monkeypatch.setattr(store, "MAX_SHARD_ROWS", 8)

    def make(name: str = "c", *, done: int = 4, **changes: Any) -> tuple[EmbeddingStore, Any]:
        contents = make_contents(**changes)
        made = EmbeddingStore.create(tmp_path / name, contents)
        rows = np.random.default_rng(0).normal(size=contents.shape).astype(np.float32)
        for shard in range(done):
            of_shard = made.rows_of(shard)
            part = rows[of_shard.start : of_shard.stop]
            made.write_shard(shard, encode(part, contents.dtype))
        return made, rows

    return make
