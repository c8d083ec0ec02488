"""The writing side: layout, shards, what a disk refuses, what a folder may hold."""

import errno
import json
import os
import shutil
from dataclasses import fields

import numpy as np
import pytest
import torch

from distill.embeddings import store as store_module
from distill.embeddings.store import (
    Contents,
    EmbeddingStore,
    decode,
    encode,
    first_misfit,
    missing_rows,
    no_rows,
    open_table,
)
from distill.errors import DistillError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_come_back_rounded_once(make_store, dtype):
    store, rows = make_store(dtype=dtype)
    expected = torch.from_numpy(rows).to(DTYPES[dtype]).float()
    table = open_table(store.folder)
    index = np.array([29, 0, 8, 7, 8])
    found = table.rows(index)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected[index])
    found.zero_()  # in memory of its own
    assert torch.equal(table.rows(np.arange(30)), expected)
    assert (len(table), table.embedding_dim, list(table.bad)) == (30, 5, [])
    assert table.rows(np.arange(0)).shape == (0, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_maps_the_file(make_store, dtype):
    store, rows = make_store(dtype=dtype)
    found = np.load(store.folder / "embeddings.npy", mmap_mode="r")
    assert found.dtype == {"fp16": np.float16, "bf16": np.uint16, "fp32": np.float32}[dtype]
    if dtype == "bf16":  # as docs/embeddings.md says
        found = (found.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(found, rows, rtol=2**-8)
    checksums = np.load(store.folder / "checksums.npy")
    assert checksums.dtype == np.uint64
    assert [entry >> 32 for entry in checksums.tolist()] == [1] * 4


def test_shards_have_at_most_1024_rows_and_64_mib(tmp_path, make_contents, monkeypatch):
    monkeypatch.setattr(store_module, "_create_array", lambda *_: None)
    monkeypatch.setattr(store_module, "_require_space", lambda *_: None)
    sizes = {}
    for width in (5, 2**15, 2**15 + 1, 2**26):
        contents = make_contents(shape=(10**4, width), dtype="fp16")
        made = EmbeddingStore.create(tmp_path / str(width), contents)
        sizes[width] = made.manifest.rows_per_shard
    assert sizes == {5: 1024, 2**15: 1024, 2**15 + 1: 2**25 // (2**15 + 1), 2**26: 1}


def test_what_is_done_is_what_the_disk_says(make_store):
    store, _ = make_store(done=2)
    assert store.done().tolist() == [True, True, False, False]
    assert store.num_done_rows() == 16
    assert [list(store.rows_of(3)), store.num_shards] == [list(range(24, 30)), 4]
    other = EmbeddingStore.find(store.folder)
    store.write_shard(3, no_rows(6, 5, "fp16"))
    assert other.done().tolist() == [True, True, False, True]
    other.unmark([0])
    assert store.done().tolist() == [False, True, False, True]
    assert json.loads((store.folder / "manifest.json").read_text())["num_done"] == 16
    store.write_progress({3: "c", 1: "a"})
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert (manifest["num_done"], manifest["bad_images"]) == (14, {"1": "a", "3": "c"})
    assert EmbeddingStore.find(store.folder).manifest == store.manifest


def test_rows_are_on_the_disk_before_they_are_marked(make_store, monkeypatch):
    store, _ = make_store(done=1)
    names = {path.stat().st_ino: path.name for path in store.folder.iterdir()}
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append((names[os.fstat(descriptor).st_ino], bool(store.done()[1])))

    monkeypatch.setattr(os, "fsync", fsync)
    store.write_shard(1, no_rows(8, 5, "fp16"))
    assert synced == [("embeddings.npy", False), ("checksums.npy", True)]


def test_a_shard_that_changed_is_noticed(make_store):
    store, rows = make_store()
    with (store.folder / "embeddings.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x77")
    assert store.read_shard(3) is None
    np.testing.assert_array_equal(store.read_shard(1), encode(rows[8:16], "fp16"))
    with pytest.raises(DistillError, match=r"embeddings.npy is damaged in rows 24 to 29 \(or "):
        open_table(store.folder)


def test_only_complete_caches_are_tables(make_store, tmp_path):
    store, _ = make_store(done=3)
    with pytest.raises(DistillError, match="has 24 of 30 embeddings"):
        open_table(store.folder)
    with pytest.raises(DistillError, match="holds no embeddings"):
        open_table(tmp_path / "absent")


def test_images_without_embedding(make_store):
    store, rows = make_store()
    rows[[8, 15]] = np.nan
    store.write_shard(1, encode(rows[8:16], "fp16"))
    table = open_table(store.folder)
    assert table.bad.tolist() == [8, 15]
    assert torch.isfinite(table.rows(np.array([7, 9, 14, 16]))).all()
    with pytest.raises(DistillError, match="no embedding of image 15, which could not be read"):
        table.rows(np.array([7, 15]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_do_not_fit_are_found(dtype):
    rows = np.zeros((4, 3), np.float32)
    assert first_misfit(rows, dtype) is None
    assert first_misfit(rows[:0], dtype) is None
    for value in ({"fp16": 65_520, "bf16": 3.4e38, "fp32": np.inf}[dtype], -np.inf, np.nan):
        rows[2, 1] = value
        assert first_misfit(rows, dtype) == (2, 1)
        rows[3, 0] = value  # a later one
        assert first_misfit(rows, dtype) == (2, 1)
        rows[3, 0] = 0
    rows[2, 1] = {"fp16": -65_519, "bf16": 3.39e38, "fp32": 3.4e38}[dtype]
    assert first_misfit(rows, dtype) is None
    assert torch.isfinite(decode(encode(rows, dtype), dtype)).all()
    absent = no_rows(2, 3, dtype)
    assert missing_rows(absent, dtype).tolist() == [0, 1]
    assert torch.isnan(decode(absent, dtype)).all()


@pytest.mark.parametrize("field", [field.name for field in fields(Contents)])
def test_other_contents_are_refused_by_field(make_store, make_contents, field):
    store, _ = make_store()
    mine = getattr(store.contents, field)
    other = {"crop_fraction": 0.5}.get(field)
    other = other or {str: "z" * 64, int: 9, tuple: (3, 4, 5)}[type(mine)]
    asked = make_contents(**{field: other})
    if field == "images":  # a name for people
        store.require(asked)
        assert asked.key() == store.contents.key()
        return
    assert asked.key() != store.contents.key()
    with pytest.raises(DistillError, match="holds other embeddings than asked for") as caught:
        store.require(asked)
    message = str(caught.value)
    assert f"({field.replace('_', ' ')}: " in message
    assert message.count("asked for") == 2
    assert "name another folder (--teacher-cache of training and distill cache, --cache" in message


def test_how_a_difference_reads(make_store, make_contents):
    store, _ = make_store()
    with pytest.raises(DistillError) as caught:
        store.require(make_contents(weights="c" * 64, shape=(31, 5)))
    assert "weights: aaaaaaaaaaaa.. in the cache, cccccccccccc.. asked for" in str(caught.value)
    assert "shape: 30 x 5 in the cache, 31 x 5 asked for" in str(caught.value)


def fail(number):
    def raise_it(*_):
        raise OSError(number, os.strerror(number))

    return raise_it


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_what_the_disk_refuses_is_one_sentence(make_store, monkeypatch, tmp_path, number):
    store, _ = make_store(done=1)
    monkeypatch.setattr(EmbeddingStore, "_write", fail(number))
    with pytest.raises(DistillError) as caught:
        store.write_shard(1, no_rows(8, 5, "fp16"))
    said = str(caught.value)
    assert os.strerror(number) in said
    assert (
        "set $DISTILL_CACHE to a folder (or, for a teacher's, name one with --teacher-cache" in said
    )
    assert store.done().tolist() == [True, False, False, False]


def test_a_full_disk_is_noticed_before_the_work(tmp_path, make_contents, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", fail(errno.ENOSPC), raising=False)
    with pytest.raises(DistillError, match="No space left on device; keep them elsewhere"):
        EmbeddingStore.create(tmp_path / "c", make_contents())
    assert list((tmp_path / "c").iterdir()) == []
    usage = shutil.disk_usage(tmp_path)._replace(free=299)
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DistillError, match=r"need 0\.0 GiB and 0\.0 GiB are free"):
        EmbeddingStore.create(tmp_path / "c", make_contents())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=300))
    EmbeddingStore.create(tmp_path / "c", make_contents())


@pytest.mark.parametrize("number", [None, errno.EOPNOTSUPP, errno.EINVAL])
def test_file_systems_that_cannot_reserve(make_store, monkeypatch, number):
    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", fail(number))
    empty, _ = make_store("empty", done=0)
    assert EmbeddingStore.find(empty.folder).num_done_rows() == 0  # of its full length already
    store, rows = make_store()
    assert torch.equal(open_table(store.folder).rows(np.arange(30)), torch.tensor(rows).half())


def test_space_is_reserved(make_contents, tmp_path):
    contents = make_contents(shape=(1000, 500))
    store = EmbeddingStore.create(tmp_path / "c", contents)
    assert os.stat(store.folder / "embeddings.npy").st_blocks * 512 >= 10**6


def test_an_interrupted_creation_is_made_again(make_store, make_contents, tmp_path):
    store, _ = make_store(done=0)
    (store.folder / "manifest.json").unlink()
    (store.folder / "embeddings.npy").write_bytes(b"x")
    (store.folder / "checksums.npy.partial").write_bytes(b"x")
    (store.folder / ".lock").touch()
    assert EmbeddingStore.find(store.folder) is None
    again = EmbeddingStore.create(store.folder, make_contents())
    assert EmbeddingStore.find(store.folder).manifest == again.manifest


def test_work_whose_manifest_is_lost_is_not_overwritten(make_store, make_contents):
    store, _ = make_store(done=1)
    (store.folder / "manifest.json").unlink()
    with pytest.raises(DistillError, match=r"manifest.json is missing; put it back, or remove"):
        EmbeddingStore.create(store.folder, make_contents())


def test_a_folder_of_something_else_is_left_alone(tmp_path, make_contents):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DistillError, match=r"holds thesis\.tex, which belongs to no"):
        EmbeddingStore.create(tmp_path, make_contents())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "file").touch()
    with pytest.raises(DistillError, match="keep them elsewhere"):
        EmbeddingStore.create(tmp_path / "file" / "c", make_contents())
