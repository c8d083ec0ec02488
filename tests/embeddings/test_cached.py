"""Filling caches: what is embedded, what survives, what several ranks make of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from distill import distributed
from distill.data.images import ArrayImages
from distill.data.sources import open_images
from distill.embeddings import cache as cached
from distill.embeddings import store
from distill.embeddings.cache import CacheTask, cached_embeddings
from distill.embeddings.embed import InferenceConfig, embed, embedded_batches
from distill.embeddings.store import Contents, EmbeddingStore
from distill.errors import BadImageError, DistillError
from distill.models.networks import InputSpec, NetworkSpec, build_network

CPU = torch.device("cpu")
SIDE, WIDTH, NUM_IMAGES, SHARD = 6, 4, 50, 8


class Counted(nn.Module):
    """A small network that counts the images it sees, and may do something at one of them."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Conv2d(3, WIDTH, SIDE)
        self.num_seen, self.at, self.then = 0, None, None
        self.factor = 1.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.num_seen += len(images)
        if self.at is not None and self.num_seen >= self.at:
            self.then()
        return self.layer(images) * self.factor


def network():
    spec = NetworkSpec(name="counted", build=lambda size: Counted(), input=InputSpec(SIDE))
    built = build_network(spec)
    built.backbone.num_seen = 0
    return built


def pictures(number: int = NUM_IMAGES) -> ArrayImages:
    pixels = np.random.default_rng(0).integers(0, 256, (number, 9, 9, 3)).astype(np.uint8)
    return ArrayImages(pixels, name="pictures/train")


def task(folder: Path, images, **changes) -> CacheTask:
    shown = InputSpec(SIDE)
    given = {
        "network": "counted",
        "weights": "a" * 64,
        "image_size": SIDE,
        "crop_fraction": shown.crop_fraction,
        "interpolation": "bilinear",
        "mean": shown.mean,
        "std": shown.std,
        "images": images.name,
        "image_fingerprint": "b" * 64,
        "precision": "fp32",
        "dtype": "fp32",
        "shape": (len(images), WIDTH),
    }
    return CacheTask(folder, "teacher", Contents(**{**given, **changes}), images, {"torch": "2"})


def how(batch_size: int = 5, **settings) -> InferenceConfig:
    return InferenceConfig(CPU, "fp32", batch_size=batch_size, **settings)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "MAX_SHARD_ROWS", SHARD)


@pytest.mark.parametrize("batch_size", [1, 5, 8, 16, 19, 64])
def test_rows_are_those_of_the_pass_in_memory(tmp_path, batch_size):
    images, teacher = pictures(), network()
    expected = embed(teacher, images, device=CPU, precision="fp32", batch_size=batch_size).features
    teacher.backbone.num_seen = 0
    found = cached_embeddings(teacher, task(tmp_path / "c", images), how(batch_size))
    assert np.array_equal(found.table.rows(np.arange(NUM_IMAGES)).numpy(), expected)
    assert (teacher.backbone.num_seen, found.num_present) == (NUM_IMAGES, 0)
    again = cached_embeddings(teacher, task(tmp_path / "c", images), how(batch_size))
    assert np.array_equal(again.table.rows(np.arange(NUM_IMAGES)).numpy(), expected)
    assert (teacher.backbone.num_seen, again.num_present) == (NUM_IMAGES, NUM_IMAGES)
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert (manifest["num_done"], manifest["versions"]) == (NUM_IMAGES, {"torch": "2"})


def test_other_contents_are_not_waited_for(tmp_path, monkeypatch):
    images, teacher = pictures(), network()
    EmbeddingStore.create(tmp_path / "c", task(tmp_path / "c", images).contents)
    monkeypatch.setattr(cached, "locked", None)
    with pytest.raises(DistillError, match="precision: fp32 in the cache, bf16 asked for"):
        cached_embeddings(teacher, task(tmp_path / "c", images, precision="bf16"), how())


def test_rows_that_do_not_arrive_are_an_error(tmp_path, monkeypatch):
    """What a process sees of others that write to another disk under the same name."""
    monkeypatch.setattr(cached, "fill", lambda *_, **__: set())
    with pytest.raises(DistillError, match="process 0 does not see the embeddings that others"):
        cached_embeddings(network(), task(tmp_path / "c", pictures()), how())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path, stop):
    images, teacher = pictures(), network()

    def interrupt():
        raise stop

    teacher.backbone.at, teacher.backbone.then = 27, interrupt  # the fourth shard has 1 of 8
    teacher.train()
    with pytest.raises(stop):
        cached_embeddings(teacher, task(tmp_path / "c", images), how())
    assert teacher.training
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["num_done"] == 24
    fresh = network()
    found = cached_embeddings(fresh, task(tmp_path / "c", images), how())
    assert (fresh.backbone.num_seen, found.num_present) == (NUM_IMAGES - 24, 24)
    expected = embed(fresh, images, device=CPU, precision="fp32").features
    np.testing.assert_allclose(found.table.rows(np.arange(NUM_IMAGES)), expected, atol=1e-6)


def fill_until_killed(folder: str) -> None:
    """Run by a child process."""
    store.MAX_SHARD_ROWS = SHARD
    teacher = network()
    backbone = teacher.backbone
    backbone.at, backbone.then = 31, lambda: os.kill(os.getpid(), signal.SIGKILL)
    cached_embeddings(teacher, task(Path(folder), pictures()), how())


def test_a_killed_process_loses_a_shard_at_most(tmp_path):
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('test_cached', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules['test_cached'] = module\n"
        "spec.loader.exec_module(module)\n"
        "module.fill_until_killed(sys.argv[2])\n"
    )
    command = [sys.executable, "-c", code, __file__, str(tmp_path / "c")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    teacher, images = network(), pictures()
    found = cached_embeddings(teacher, task(tmp_path / "c", images), how())
    assert (teacher.backbone.num_seen, found.num_present) == (NUM_IMAGES - 24, 24)
    expected = embed(teacher, images, device=CPU, precision="fp32").features
    np.testing.assert_allclose(found.table.rows(np.arange(NUM_IMAGES)), expected, atol=1e-6)


def test_a_damaged_shard_is_said_and_embedded_again(tmp_path, capsys):
    images, teacher = pictures(), network()
    expected = cached_embeddings(teacher, task(tmp_path / "c", images), how()).table.rows(
        np.arange(NUM_IMAGES)
    )
    path = tmp_path / "c" / "embeddings.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 16
    content[128 + SHARD * WIDTH * 4] ^= 1  # the second shard's first byte
    path.write_bytes(content)
    teacher.backbone.num_seen = 0
    capsys.readouterr()
    found = cached_embeddings(teacher, task(tmp_path / "c", images), how())
    assert teacher.backbone.num_seen == SHARD + 2
    torch.testing.assert_close(found.table.rows(np.arange(NUM_IMAGES)), expected)
    printed = capsys.readouterr().out
    for rows in ("8 to 15", "48 to 49"):
        said = f"{path} is damaged in rows {rows} (or their entry in checksums.npy is): embedding"
        assert said in printed
    teacher.backbone.num_seen = 0
    cached_embeddings(teacher, task(tmp_path / "c", images), how())
    assert teacher.backbone.num_seen == 0


@pytest.mark.parametrize("name", ["embeddings.npy", "checksums.npy", "manifest.json"])
def test_damage_never_gives_wrong_numbers(tmp_path, name):
    images, teacher = pictures(), network()
    folder = tmp_path / "c"
    # Batches of a shard each: which rows are embedded together changes their last bits.
    expected = cached_embeddings(teacher, task(folder, images), how(SHARD)).table.rows(
        np.arange(NUM_IMAGES)
    )
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    rng, refused = np.random.default_rng(len(name)), []
    for _ in range(30):
        for other, content in contents.items():
            (folder / other).write_bytes(content)
        changed = bytearray(contents[name])
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
        (folder / name).write_bytes(changed)
        try:
            found = cached_embeddings(teacher, task(folder, images), how(SHARD))
        except DistillError as error:
            refused.append(str(error))
        else:
            assert torch.equal(found.table.rows(np.arange(NUM_IMAGES)), expected)
    remedy = f"; remove the folder {folder} and its embeddings are made again"
    assert all(name in message and message.endswith(remedy) for message in refused)
    assert refused


def test_other_contents_are_refused(tmp_path):
    images, teacher = pictures(), network()
    cached_embeddings(teacher, task(tmp_path / "c", images), how())
    before = {path: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    with pytest.raises(DistillError, match=r"weights: aaaaaaaaaaaa.. in the cache, cccc"):
        cached_embeddings(teacher, task(tmp_path / "c", images, weights="c" * 64), how())
    with pytest.raises(DistillError, match="shape: 50 x 4 in the cache, 49 x 4 asked for"):
        cached_embeddings(teacher, task(tmp_path / "c", pictures(49)), how())
    store.EmbeddingStore.find(tmp_path / "c").unmark([0])  # incomplete ones, too
    with pytest.raises(DistillError, match="precision: fp32 in the cache, bf16 asked for"):
        cached_embeddings(teacher, task(tmp_path / "c", images, precision="bf16"), how())
    assert before.keys() == set((tmp_path / "c").iterdir())


@pytest.mark.parametrize(
    ("dtype", "factor", "message"),
    [
        (
            "fp16",
            1e6,
            r"of pictures/train\[0\] holds -?\d.*, too large for fp16; use --cache-dtype "
            "bf16 or fp32",
        ),
        (
            "fp32",
            float("inf"),
            r"of pictures/train\[0\] holds -?inf, computed in fp32; use other weights$",
        ),
        (
            "bf16",
            float("nan"),
            r"of pictures/train\[0\] holds nan, computed in fp32; use other weights$",
        ),
    ],
)
def test_values_that_do_not_fit_end_the_pass(tmp_path, dtype, factor, message):
    images, teacher = pictures(), network()
    teacher.backbone.factor = factor
    with pytest.raises(DistillError, match=message):
        cached_embeddings(teacher, task(tmp_path / "c", images, dtype=dtype), how())
    assert not EmbeddingStore.find(tmp_path / "c").done().any()
    if dtype == "fp16":
        cached_embeddings(teacher, task(tmp_path / "b", images, dtype="bf16"), how())


def test_one_value_that_does_not_fit_is_named(tmp_path):
    images, teacher = pictures(), network()
    rows = embed(teacher, images, device=CPU, precision="fp32", batch_size=5).features
    largest = np.abs(rows).max(1)
    teacher.backbone.factor = float(66_000 / largest.max())  # all others fit
    assert (largest * teacher.backbone.factor > 65_519).sum() == 1
    message = rf"pictures/train\[{largest.argmax()}\] holds -?66000, too large for fp16"
    with pytest.raises(DistillError, match=message):
        cached_embeddings(teacher, task(tmp_path / "c", images, dtype="fp16"), how())


@pytest.fixture
def some_bad(make_folder):
    """A folder of 36 images of which 0, 3 and the whole third shard of 8 cannot be read."""
    root = make_folder()
    images = open_images(root).train
    bad = [0, 3, *range(16, 24)]
    for i in bad:
        Path(images.path(i)).write_bytes(b"x")
    return images, bad


def test_images_that_cannot_be_read_have_no_row(tmp_path, some_bad):
    images, bad = some_bad
    good = np.setdiff1d(np.arange(36), bad)
    expected = embed(network(), images, device=CPU, precision="fp32", batch_size=5)
    for _ in range(2):  # made, then found
        told = []
        found = cached_embeddings(
            network(), task(tmp_path / "c", images), how(on_bad_images=told.extend)
        )
        assert found.table.bad.tolist() == bad
        np.testing.assert_allclose(found.table.rows(good), expected.features, atol=1e-6)
        with pytest.raises(DistillError, match="no embedding of image 17"):
            found.table.rows(np.array([1, 17]))
        manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
        assert manifest["bad_images"] == {str(i): images.describe(i) for i in bad}
    assert np.isnan(np.load(tmp_path / "c" / "embeddings.npy")[bad]).all()


def test_an_image_that_could_not_be_read_in_passing_is_tried_again(tmp_path, some_bad, capsys):
    images, bad = some_bad
    wanted, told = task(tmp_path / "c", images), []
    cached_embeddings(network(), wanted, how(on_bad_images=told.extend))
    Path(images.path(17)).write_bytes(Path(images.path(1)).read_bytes())
    found = cached_embeddings(network(), wanted, how(on_bad_images=told.extend))
    assert found.table.bad.tolist() == [one for one in bad if one != 17]
    assert found.num_present == 28  # the other shards were not made again
    rows = found.table.rows(np.array([1, 17]))
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)
    assert "lacks images among 16 to 23 that can be read now" in capsys.readouterr().out


def test_a_bad_image_may_end_the_pass(tmp_path, some_bad):
    images, _ = some_bad
    Path(images.path(0)).write_bytes(Path(images.path(1)).read_bytes())

    def fail(names):
        raise BadImageError(f"{names[0]} cannot be read")

    with pytest.raises(BadImageError, match="cannot be read"):
        cached_embeddings(network(), task(tmp_path / "c", images), how(on_bad_images=fail))
    assert not EmbeddingStore.find(tmp_path / "c").done().any()


def test_a_complete_cache_needs_no_permission_to_write(tmp_path, monkeypatch):
    images, teacher = pictures(), network()
    cached_embeddings(teacher, task(tmp_path / "c", images), how())

    def refuse(*_, **__):
        raise DistillError("this would write")

    for name in ("write_progress", "_write", "create"):
        monkeypatch.setattr(EmbeddingStore, name, refuse)
    monkeypatch.setattr(cached, "locked", refuse)
    cached_embeddings(teacher, task(tmp_path / "c", images), how())


def test_what_another_process_made_meanwhile_is_not_made_again(tmp_path, monkeypatch):
    images, teacher, other = pictures(), network(), network()
    locked = cached.locked

    def wait(folder, *, on_wait):
        monkeypatch.setattr(cached, "locked", locked)
        cached_embeddings(other, task(folder, images), how())  # the one that was waited for
        return locked(folder, on_wait=on_wait)

    monkeypatch.setattr(cached, "locked", wait)
    found = cached_embeddings(teacher, task(tmp_path / "c", images), how())
    assert (teacher.backbone.num_seen, other.backbone.num_seen) == (0, NUM_IMAGES)
    assert found.num_present == NUM_IMAGES


def test_the_folder_is_locked_while_it_is_filled(tmp_path):
    import filelock

    images, teacher = pictures(), network()
    lock, tried = filelock.FileLock(tmp_path / "c" / ".lock", timeout=0), []

    def try_lock():
        try:
            lock.acquire()
        except filelock.Timeout:
            tried.append("locked")
        else:
            lock.release()

    teacher.backbone.at, teacher.backbone.then = 20, try_lock
    cached_embeddings(teacher, task(tmp_path / "c", images), how())
    assert set(tried) == {"locked"}
    lock.acquire()
    lock.release()


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch):
    """In NumPy and bytes: at most a few shards; in PyTorch: no tensor of more than a shard."""
    width, number, rows = 512, 1024, 32
    monkeypatch.setattr(store, "MAX_SHARD_ROWS", rows)
    pixels = np.zeros((number, 4, 4), np.uint8)
    images = ArrayImages(pixels, name="black")
    spec = NetworkSpec(
        name="wide",
        build=lambda size: nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, width)),
        input=InputSpec(SIDE),
    )
    teacher, wanted = build_network(spec), task(tmp_path / "c", images, shape=(number, width))
    largest = []
    decode, encode = torch.Tensor.to, torch.from_numpy

    def spied(tensor, *args, **kwargs):
        result = decode(tensor, *args, **kwargs)
        largest.append(result.numel())
        return result

    monkeypatch.setattr(torch.Tensor, "to", spied)
    monkeypatch.setattr(torch, "from_numpy", lambda a: largest.append(a.size) or encode(a))
    tracemalloc.start()
    try:
        cached_embeddings(teacher, wanted, how(rows))
        table = cached_embeddings(teacher, wanted, how(rows)).table
        table.rows(np.arange(rows))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(largest) <= rows * width
    assert peak < number * width * 4 / 4, peak  # a quarter of the table


def fill_as_a_rank(folder: str) -> dict:
    store.MAX_SHARD_ROWS = SHARD
    teacher, images = network(), pictures()
    found = cached_embeddings(teacher, task(Path(folder), images), how(SHARD))
    rows = found.table.rows(np.arange(NUM_IMAGES)).numpy()
    return {"rows": rows, "seen": teacher.backbone.num_seen, "present": found.num_present}


@pytest.mark.ddp
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_share_the_work_and_the_result(run_ranks, tmp_path, num_ranks):
    images, teacher = pictures(), network()
    alone = cached_embeddings(teacher, task(tmp_path / "one", images), how(SHARD)).table
    expected = alone.rows(np.arange(NUM_IMAGES)).numpy()
    shared = tmp_path / "shared"
    results = run_ranks(fill_as_a_rank, num_ranks, str(shared))
    assert all(np.array_equal(result["rows"], expected) for result in results)
    seen = [result["seen"] for result in results]
    assert sum(seen) == NUM_IMAGES
    assert min(seen) >= SHARD
    for name in ("embeddings.npy", "checksums.npy"):
        assert (shared / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    # Two shards are damaged, in the parts of different ranks.
    path = shared / "embeddings.npy"
    content = bytearray(path.read_bytes())
    content[128] ^= 1
    content[128 + 3 * SHARD * WIDTH * 4] ^= 1
    path.write_bytes(content)
    results = run_ranks(fill_as_a_rank, num_ranks, str(shared))
    assert all(np.array_equal(result["rows"], expected) for result in results)
    assert sum(result["seen"] for result in results) == 2 * SHARD
    assert {result["present"] for result in results} == {NUM_IMAGES - 2 * SHARD}


def fill_a_folder_of_its_own(folder: str) -> str:
    try:
        fill_as_a_rank(f"{folder}-{distributed.rank()}")
    except DistillError as error:
        return str(error)
    except RuntimeError:  # the other one left
        return "left alone"
    return "done"


@pytest.mark.ddp
def test_a_folder_that_ranks_do_not_share(run_ranks, tmp_path):
    results = run_ranks(fill_a_folder_of_its_own, 2, str(tmp_path / "c"))
    assert "process 1 does not see the embeddings that others wrote to" in results[1]
    assert "must be on a file system that all processes share; name one with" in results[1]


def bad_images_of_ranks(root: str, folder: str) -> list[list[int]]:
    store.MAX_SHARD_ROWS = SHARD
    images = open_images(root).train
    wanted = task(Path(folder), images)
    tables = [cached_embeddings(network(), wanted, how()).table for _ in range(2)]  # made, found
    return [table.bad.tolist() for table in tables]


@pytest.mark.ddp
def test_ranks_know_all_bad_images(run_ranks, tmp_path, make_folder):
    root = make_folder()
    images = open_images(root).train
    for i in (1, 35):
        Path(images.path(i)).write_bytes(b"x")
    found = run_ranks(bad_images_of_ranks, 2, str(root), str(tmp_path / "c"))
    assert found == [[[1, 35], [1, 35]]] * 2
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert list(manifest["bad_images"]) == ["1", "35"]


def test_batches_are_embedded_as_they_are_asked_for():
    images, teacher = pictures(), network()
    teacher.train()
    batches = embedded_batches(teacher, images, how(10))
    first = next(batches)
    assert (teacher.backbone.num_seen, list(first.index)) == (10, list(range(10)))
    assert torch.is_grad_enabled()
    batches.close()
    assert teacher.training


def test_a_full_disk_ends_the_pass_at_once(tmp_path, monkeypatch):
    images, teacher = pictures(), network()
    teacher.train()

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EmbeddingStore, "_write", refuse)
    with pytest.raises(DistillError, match="No space left on device; keep them elsewhere") as said:
        cached_embeddings(teacher, task(tmp_path / "c", images), how())
    assert teacher.training  # although the error still holds on to the pass
    assert said.tb is not None
    assert teacher.backbone.num_seen <= SHARD + 5
