"""Embeddings on disk: layout, order of writing, damage, what a disk refuses, who may write."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields

import filelock
import google_crc32c
import numpy as np
import pytest
import torch

from distill.embeddings import store as store_module
from distill.embeddings.search import nearest_neighbors
from distill.embeddings.store import (
    FORMAT,
    Contents,
    EmbeddingStore,
    SelectedRows,
    decode,
    encode,
    first_misfit,
    locked,
    missing_rows,
    no_rows,
    open_table,
)
from distill.errors import DistillError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
FILES = ("embeddings.npy", "checksums.npy", "manifest.json")
ALL = np.arange(30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_come_back_rounded_once(make_store, dtype):
    store, rows = make_store(dtype=dtype)
    expected = torch.from_numpy(rows).to(DTYPES[dtype]).float()
    table = open_table(store.folder)
    index = np.array([29, 0, 8, 7, 8])
    read = table.rows(index)
    assert torch.equal(read, expected[index])
    read.zero_()  # in memory of its own
    assert torch.equal(table.rows(ALL), expected)
    assert (len(table), table.embedding_dim, list(table.bad)) == (30, 5, [])
    assert table.rows(np.arange(0)).shape == (0, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_alone_reads_the_file(make_store, dtype):
    store, rows = make_store(dtype=dtype)
    mapped = np.load(store.folder / "embeddings.npy", mmap_mode="r")
    assert mapped.dtype == {"fp16": np.float16, "bf16": np.uint16, "fp32": np.float32}[dtype]
    if dtype == "bf16":  # as docs/embeddings.md says
        mapped = (mapped.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(mapped, rows, rtol=2**-8)
    checksums = np.load(store.folder / "checksums.npy")
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
    other = EmbeddingStore.find(store.folder)
    store.write_shard(3, no_rows(6, 5, "fp16"))
    assert other.done().tolist() == [True, True, False, True]
    other.unmark([0])
    assert store.done().tolist() == [False, True, False, True]
    store.name_bad_images({3: "c", 1: "a"})
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert manifest["bad_images"] == {"1": "a", "3": "c"}
    assert EmbeddingStore.find(store.folder).manifest == store.manifest


def test_rows_are_on_the_disk_before_they_are_marked(make_store, monkeypatch):
    """Whatever interrupts the work, a half-written row is never read as a row."""
    store, _ = make_store(done=1)
    names = {path.stat().st_ino: path.name for path in store.folder.iterdir()}
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append((names[os.fstat(descriptor).st_ino], bool(store.done()[1])))

    monkeypatch.setattr(os, "fsync", fsync)
    store.write_shard(1, no_rows(8, 5, "fp16"))
    assert synced == [("embeddings.npy", False), ("checksums.npy", True)]


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
        rows[2, 1] = rows[3, 0] = value
        assert first_misfit(rows, dtype) == (2, 1)
    rows[3, 0] = 0
    rows[2, 1] = {"fp16": -65_519, "bf16": 3.39e38, "fp32": 3.4e38}[dtype]  # rounded to the limit
    assert first_misfit(rows, dtype) is None
    assert torch.isfinite(decode(encode(rows, dtype), dtype)).all()
    absent = no_rows(2, 3, dtype)
    assert missing_rows(absent, dtype).tolist() == [0, 1]


@pytest.mark.parametrize("field", [field.name for field in fields(Contents)])
def test_other_contents_have_another_key_and_are_refused_by_field(make_store, make_contents, field):
    store, _ = make_store()
    mine = getattr(store.contents, field)
    other = {"crop_fraction": 0.5, "shape": (31, 5)}.get(field)
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
    if field == "weights":
        assert "weights: aaaaaaaaaaaa.. in the cache, zzzzzzzzzzzz.. asked for" in message
    if field == "shape":
        assert "shape: 30 x 5 in the cache, 31 x 5 asked for" in message


def test_selected_rows_slice_like_an_array(make_store):
    store, rows = make_store()
    index = np.array([7, 3, 20, 29])
    selected = SelectedRows(open_table(store.folder), index)
    array = rows[index].astype(np.float16).astype(np.float32)
    assert selected.shape == array.shape == (4, 5)
    for key in (slice(1, 3), slice(None), np.array([3, 0, 3]), slice(0, 0)):
        np.testing.assert_array_equal(selected[key], array[key])
    selected[:][:] = 0  # what is read is one's own
    np.testing.assert_array_equal(np.asarray(selected), array)
    read, expected = (nearest_neighbors(rows, rows, k=2)[0] for rows in (selected, array))
    np.testing.assert_array_equal(read, expected)


# Damage: one sentence or the right numbers, whatever byte it is.


def damaged(content: bytes, how: str, rng: np.random.Generator) -> bytes:
    if how == "cut":
        return content[: int(rng.integers(len(content)))]
    if how == "pad":
        extra = rng.integers(256, size=int(rng.integers(1, 20)), dtype=np.uint8).tobytes()
        return content + (extra if rng.random() < 0.5 else [b"\n", b" ", b"\0"][rng.integers(3)])
    place, flipped = int(rng.integers(len(content))), bytearray(content)
    flipped[place] ^= 1 << int(rng.integers(8))
    return bytes(flipped)


@pytest.mark.parametrize("how", ["flip", "cut", "pad"])
@pytest.mark.parametrize("name", FILES)
def test_no_byte_gives_a_traceback_or_a_wrong_number(make_store, name, how):
    store, rows = make_store()
    expected = torch.from_numpy(rows).half().float()
    path = store.folder / name
    content = path.read_bytes()
    rng = np.random.default_rng([FILES.index(name), len(how)])
    refused, num_places = [], 40
    for _ in range(num_places):
        path.write_bytes(damaged(content, how, rng))
        try:
            read = open_table(store.folder).rows(ALL)
        except DistillError as error:
            refused.append(str(error))
        else:
            assert torch.equal(read, expected)
        assert_only_whole_shards(store.folder, expected)
    assert len(refused) > num_places * 0.9  # a changed header may say the same
    for message in refused:
        assert name in message
        assert "\n" not in message
        assert "remove the folder" in message or "makes these rows again" in message


def assert_only_whole_shards(folder, expected) -> None:
    """For the writer, which goes on with shards that are done."""
    try:
        store = EmbeddingStore.find(folder)
    except DistillError:
        return
    for shard in np.flatnonzero(store.done()):
        read, rows = store.read_shard(shard), store.rows_of(shard)
        if read is not None:
            np.testing.assert_array_equal(read, expected[rows.start : rows.stop].half())


def test_a_shard_that_changed_is_named(make_store):
    store, rows = make_store()
    with (store.folder / "embeddings.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x77")
    assert store.read_shard(3) is None
    np.testing.assert_array_equal(store.read_shard(1), encode(rows[8:16], "fp16"))
    with pytest.raises(DistillError, match=r"embeddings.npy is damaged in rows 24 to 29 \(or "):
        open_table(store.folder)


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_not_there(make_store, name):
    store, _ = make_store()
    (store.folder / name).unlink()
    message = {"manifest.json": "holds no embeddings"}.get(name, f"{name} is missing; remove the")
    with pytest.raises(DistillError, match=message):
        open_table(store.folder)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"checksum": 1}', "[" * 100_000, "\xff"])
def test_manifests_of_another_kind(make_store, text):
    store, _ = make_store()
    (store.folder / "manifest.json").write_bytes(text.encode("latin1"))
    with pytest.raises(DistillError, match=r"manifest.json is damaged; remove the folder"):
        EmbeddingStore.find(store.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, f"has format 1 of another version .* reads format {FORMAT}; remove the"),
        ({"rows_per_shard": "8"}, "is damaged: rows_per_shard: .*; remove the folder"),
    ],
)
def test_a_manifest_of_another_version(make_store, change, message):
    store, _ = make_store()
    path = store.folder / "manifest.json"
    content = {**json.loads(path.read_text()), **change}
    del content["checksum"]
    content["checksum"] = google_crc32c.value(json.dumps(content).encode())
    path.write_text(json.dumps(content, indent=2) + "\n")
    with pytest.raises(DistillError, match=message):
        EmbeddingStore.find(store.folder)


def test_files_of_another_cache_do_not_pass(make_store):
    store, _ = make_store()
    other, _ = make_store("other", dtype="bf16")  # as many bytes
    shutil.copy(other.folder / "embeddings.npy", store.folder)
    with pytest.raises(DistillError, match=r"embeddings.npy is damaged: it does not hold"):
        EmbeddingStore.find(store.folder)


# What a disk refuses, and what a folder may hold.


def fail(number):
    def raise_it(*_):
        raise OSError(number, os.strerror(number))

    return raise_it


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_what_the_disk_refuses_is_one_sentence(make_store, monkeypatch, number):
    store, _ = make_store(done=1)
    monkeypatch.setattr(EmbeddingStore, "_write", fail(number))
    with pytest.raises(DistillError, match=os.strerror(number)) as caught:
        store.write_shard(1, no_rows(8, 5, "fp16"))
    remedy = "set $DISTILL_CACHE to a folder (or, for a teacher's, name one with --teacher-cache"
    assert remedy in str(caught.value)
    assert store.done().tolist() == [True, False, False, False]


def test_a_manifest_that_the_disk_refuses_is_as_before(make_store, monkeypatch):
    store, _ = make_store()
    before = (store.folder / "manifest.json").read_bytes()
    monkeypatch.setattr(os, "fsync", fail(errno.ENOSPC))
    with pytest.raises(DistillError, match="No space left on device"):
        store.name_bad_images({3: "a.png"})
    assert (store.folder / "manifest.json").read_bytes() == before


def test_a_full_disk_is_noticed_before_the_work(tmp_path, make_contents, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", fail(errno.ENOSPC), raising=False)
        with pytest.raises(DistillError, match="No space left on device; keep them elsewhere"):
            EmbeddingStore.create(tmp_path / "c", make_contents())
    assert list((tmp_path / "c").iterdir()) == []
    usage = shutil.disk_usage(tmp_path)._replace(free=299)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DistillError, match=r"need 0\.0 GiB and 0\.0 GiB are free"):
        EmbeddingStore.create(tmp_path / "c", make_contents())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=300))
    EmbeddingStore.create(tmp_path / "c", make_contents())


@pytest.mark.parametrize("number", [None, errno.EOPNOTSUPP])
def test_file_systems_that_cannot_reserve(make_store, monkeypatch, number):
    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", fail(number))
    store, rows = make_store()
    assert torch.equal(open_table(store.folder).rows(ALL), torch.tensor(rows).half())


def test_space_is_reserved(make_contents, tmp_path):
    store = EmbeddingStore.create(tmp_path / "c", make_contents(shape=(1000, 500)))
    assert os.stat(store.folder / "embeddings.npy").st_blocks * 512 >= 10**6


def test_an_interrupted_creation_is_made_again(make_store, make_contents):
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


# Who may write.

HOLDER = """
import sys, filelock
with filelock.FileLock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("ending", ["leaves", "is killed"])
def test_the_second_waits_and_says_so_once(tmp_path, ending):
    (tmp_path / "c").mkdir()
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "c" / ".lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout.readline() == "locked\n"
        messages = []

        def on_wait(message: str) -> None:
            messages.append(message)
            if ending == "is killed":
                holder.kill()
            else:
                holder.stdin.write("go\n")
                holder.stdin.flush()

        with locked(tmp_path / "c", on_wait=on_wait):
            pass
        with locked(tmp_path / "c", on_wait=on_wait):
            pass
    assert messages == [f"{tmp_path / 'c'} is being filled by another process; waiting for it"]


def test_a_folder_that_cannot_be_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(filelock.FileLock, "acquire", lambda *_, **__: fail(errno.EROFS)())
    with (
        pytest.raises(DistillError, match="Read-only file system; keep them elsewhere"),
        locked(tmp_path / "c", on_wait=print),
    ):
        pass


def test_what_happens_inside_is_not_explained(tmp_path):
    with pytest.raises(OSError, match="broken"), locked(tmp_path / "c", on_wait=print):
        raise OSError("broken")
