"""Changed, cut and padded files: one sentence or the right numbers, whatever byte it is."""

import json
import shutil

import google_crc32c
import numpy as np
import pytest
import torch

from distill.embeddings.store import EmbeddingStore, open_table
from distill.errors import DistillError

FILES = ("embeddings.npy", "checksums.npy", "manifest.json")
NUM_PLACES = 100


def damaged(content: bytes, how: str, rng: np.random.Generator) -> bytes:
    if how == "cut":
        return content[: int(rng.integers(len(content)))]
    if how == "pad":
        extra = rng.integers(256, size=int(rng.integers(1, 20)), dtype=np.uint8).tobytes()
        return content + (extra if rng.random() < 0.5 else [b"\n", b" ", b"\0"][rng.integers(3)])
    place, flipped = int(rng.integers(len(content))), bytearray(content)
    flipped[place] ^= 1 << int(rng.integers(8))
    return bytes(flipped)


def attempt(call):
    try:
        return call()
    except DistillError as error:
        return error


@pytest.mark.parametrize("how", ["flip", "cut", "pad"])
@pytest.mark.parametrize("name", FILES)
def test_no_byte_gives_a_traceback_or_a_wrong_number(make_store, name, how):
    store, rows = make_store()
    expected = torch.from_numpy(rows).half().float()
    path = store.folder / name
    content = path.read_bytes()
    rng = np.random.default_rng([FILES.index(name), len(how)])
    refused = 0
    for _ in range(NUM_PLACES):
        changed = damaged(content, how, rng)
        path.write_bytes(changed)
        found = attempt(lambda: open_table(store.folder).rows(np.arange(30)))
        if isinstance(found, DistillError):
            refused += 1
            assert name in str(found)
            assert "\n" not in str(found)
            assert "remove the folder" in str(found) or "makes these rows again" in str(found)
        else:
            assert torch.equal(found, expected)
        # And for the writer: whole shards only.
        path.write_bytes(changed)
        assert_only_whole_shards(store.folder, expected)
    assert refused > NUM_PLACES * 0.9  # a changed header may say the same


def assert_only_whole_shards(folder, expected) -> None:
    try:
        store = EmbeddingStore.find(folder)
        assert store is not None
    except DistillError:
        return
    for shard in range(store.num_shards):
        stored = store.read_shard(shard)
        if stored is not None and store.done()[shard]:
            rows = store.rows_of(shard)
            np.testing.assert_array_equal(stored, expected[rows.start : rows.stop].half())


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_not_there(make_store, name):
    store, _ = make_store()
    (store.folder / name).unlink()
    message = {"manifest.json": "holds no embeddings"}.get(name, f"{name} is missing; remove the")
    with pytest.raises(DistillError, match=message):
        open_table(store.folder)


@pytest.mark.parametrize("text", ["", "[]", "1", "null", '{"checksum": 1}', "[" * 100_000, "\xff"])
def test_manifests_of_another_kind(make_store, text):
    store, _ = make_store()
    (store.folder / "manifest.json").write_bytes(text.encode("latin1"))
    with pytest.raises(DistillError, match=r"manifest.json is damaged; remove the folder"):
        EmbeddingStore.find(store.folder)


def test_a_manifest_of_another_version(make_store):
    store, _ = make_store()
    path = store.folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    content["format"] = 1
    content["checksum"] = google_crc32c.value(json.dumps(content).encode())
    path.write_text(json.dumps(content, indent=2) + "\n")
    with pytest.raises(DistillError, match="written by another version of distill; remove"):
        EmbeddingStore.find(store.folder)


def test_files_of_another_cache_do_not_pass(make_store):
    store, _ = make_store()
    other, _ = make_store("other", dtype="bf16")  # as many bytes
    shutil.copy(other.folder / "embeddings.npy", store.folder)
    with pytest.raises(DistillError, match=r"embeddings.npy is damaged: it does not hold"):
        EmbeddingStore.find(store.folder)
