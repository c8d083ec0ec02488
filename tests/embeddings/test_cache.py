"""Filling caches: what is embedded, what survives, several ranks, and what a cache is keyed by."""

from __future__ import annotations

import json
import os
import signal
import tracemalloc
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from torch import nn

import distill
from distill import distributed
from distill.data.images import ArrayImages
from distill.data.sources import BadImages, ImageData, open_images
from distill.embeddings import cache as cache_module
from distill.embeddings import store
from distill.embeddings.cache import CacheTask, NetworkCache, cached_embeddings
from distill.embeddings.embed import DatasetEmbedder, InferenceConfig, embed
from distill.embeddings.store import Contents, EmbeddingStore
from distill.errors import BadImageError, DistillError
from distill.models.networks import InputSpec, NetworkSpec, build_network, wrap_module

CPU = torch.device("cpu")
SIDE, WIDTH, NUM_IMAGES, SHARD = 6, 4, 50, 8
ALL = np.arange(NUM_IMAGES)


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
    return CacheTask(folder, "teacher", Contents(**{**given, **changes}), images)


def inference(batch_size: int = 5, **settings) -> InferenceConfig:
    return InferenceConfig(CPU, "fp32", batch_size=batch_size, num_workers=0, **settings)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "MAX_SHARD_ROWS", SHARD)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "c"


@pytest.mark.parametrize("batch_size", [1, 5, 8, 19, 64])
def test_rows_are_those_of_a_direct_pass(folder, batch_size):
    images, teacher = pictures(), network()
    expected = embed(teacher, images, batch_size=batch_size).features
    teacher.backbone.num_seen = 0
    for num_embedded in (NUM_IMAGES, 0):  # made, then found
        made = cached_embeddings(teacher, task(folder, images), inference(batch_size))
        assert np.array_equal(made.table.rows(ALL).numpy(), expected)
        assert (teacher.backbone.num_seen, made.num_embedded) == (NUM_IMAGES, num_embedded)
        assert (made.images_per_second is None) == (num_embedded == 0)


def interrupted_at(number: int, stop) -> nn.Module:
    teacher = network()
    teacher.backbone.at, teacher.backbone.then = number, stop
    return teacher


def assert_three_shards_are_there(folder: Path) -> None:
    teacher, images = network(), pictures()
    made = cached_embeddings(teacher, task(folder, images), inference())
    assert teacher.backbone.num_seen == made.num_embedded == NUM_IMAGES - 3 * SHARD
    expected = embed(teacher, images).features
    np.testing.assert_allclose(made.table.rows(ALL), expected, atol=1e-6)


def test_an_interrupted_pass_goes_on_where_it_stopped(folder):
    def interrupt():
        raise KeyboardInterrupt

    teacher = interrupted_at(27, interrupt).train()  # the fourth shard has 1 of 8
    with pytest.raises(KeyboardInterrupt):
        cached_embeddings(teacher, task(folder, pictures()), inference())
    assert teacher.training
    assert_three_shards_are_there(folder)


def fill_until_killed(folder: str) -> None:
    store.MAX_SHARD_ROWS = SHARD
    teacher = interrupted_at(31, lambda: os.kill(os.getpid(), signal.SIGKILL))
    cached_embeddings(teacher, task(Path(folder), pictures()), inference())


@pytest.mark.ddp
def test_a_killed_process_loses_a_shard_at_most(run_ranks, folder):
    with pytest.raises(pytest.fail.Exception, match="status -9"):
        run_ranks(fill_until_killed, 1, str(folder))
    assert_three_shards_are_there(folder)


def test_a_damaged_shard_is_named_and_embedded_again(folder, capsys):
    images, teacher = pictures(), network()
    expected = cached_embeddings(teacher, task(folder, images), inference()).table.rows(ALL)
    path = folder / "embeddings.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 16
    content[128 + SHARD * WIDTH * 4] ^= 1  # the second shard's first byte
    path.write_bytes(content)
    teacher.backbone.num_seen = 0
    capsys.readouterr()
    made = cached_embeddings(teacher, task(folder, images), inference())
    assert teacher.backbone.num_seen == made.num_embedded == SHARD + 2
    torch.testing.assert_close(made.table.rows(ALL), expected)
    printed = capsys.readouterr().out
    for rows in ("8 to 15", "48 to 49"):
        assert (
            f"{path} is damaged in rows {rows} (or their entry in checksums.npy is): embedding"
            in printed
        )
    assert cached_embeddings(teacher, task(folder, images), inference()).num_embedded == 0


@pytest.mark.parametrize("name", ["embeddings.npy", "checksums.npy", "manifest.json"])
def test_damage_never_gives_wrong_numbers(folder, name):
    images, teacher = pictures(), network()
    # Batches of a shard each: which rows are embedded together changes their last bits.
    expected = cached_embeddings(teacher, task(folder, images), inference(SHARD)).table.rows(ALL)
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    rng, refused = np.random.default_rng(len(name)), []
    for _ in range(15):
        for other, content in contents.items():
            (folder / other).write_bytes(content)
        changed = bytearray(contents[name])
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
        (folder / name).write_bytes(changed)
        try:
            made = cached_embeddings(teacher, task(folder, images), inference(SHARD))
        except DistillError as error:
            refused.append(str(error))
        else:
            assert torch.equal(made.table.rows(ALL), expected)
    remedy = f"; remove the folder {folder} and its embeddings are made again"
    assert all(name in message and message.endswith(remedy) for message in refused)
    assert refused


def test_other_contents_are_refused_without_waiting_or_writing(folder, monkeypatch):
    images, teacher = pictures(), network()
    cached_embeddings(teacher, task(folder, images), inference())
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(cache_module, "locked", None)
    with pytest.raises(DistillError, match=r"weights: aaaaaaaaaaaa.. in the cache, cccc"):
        cached_embeddings(teacher, task(folder, images, weights="c" * 64), inference())
    assert before == {path: path.read_bytes() for path in folder.iterdir()}
    EmbeddingStore.find(folder).unmark([0])  # incomplete ones, too
    with pytest.raises(DistillError, match="precision: fp32 in the cache, bf16 asked for"):
        cached_embeddings(teacher, task(folder, images, precision="bf16"), inference())


@pytest.mark.parametrize(
    ("dtype", "factor", "message"),
    [
        ("fp16", 1e6, "holds -?\\d.*, too large for fp16; use --cache-dtype bf16 or fp32"),
        ("fp32", float("inf"), "holds -?inf, computed in fp32; use other weights$"),
        ("bf16", float("nan"), "holds nan, computed in fp32; use other weights$"),
    ],
)
def test_values_that_do_not_fit_end_the_pass(folder, dtype, factor, message):
    images, teacher = pictures(), network()
    teacher.backbone.factor = factor
    with pytest.raises(DistillError, match=rf"of pictures/train\[0\] {message}"):
        cached_embeddings(teacher, task(folder, images, dtype=dtype), inference())
    assert not EmbeddingStore.find(folder).done().any()


def test_one_value_that_does_not_fit_is_named(folder):
    images, teacher = pictures(), network()
    largest = np.abs(embed(teacher, images, batch_size=5).features).max(1)
    teacher.backbone.factor = float(66_000 / largest.max())  # all others fit
    assert (largest * teacher.backbone.factor > 65_519).sum() == 1
    message = rf"pictures/train\[{largest.argmax()}\] holds -?66000, too large for fp16"
    with pytest.raises(DistillError, match=message):
        cached_embeddings(teacher, task(folder, images, dtype="fp16"), inference())


# Images that cannot be read.


@pytest.fixture
def some_bad(make_folder):
    """A folder of 36 images of which 0, 3 and the whole third shard of 8 cannot be read."""
    images = open_images(make_folder()).train
    bad = [0, 3, *range(16, 24)]
    for i in bad:
        Path(images.path(i)).write_bytes(b"x")
    return images, bad


def test_images_that_cannot_be_read_have_no_row(folder, some_bad):
    images, bad = some_bad
    good = np.setdiff1d(np.arange(36), bad)
    expected = embed(network(), images, batch_size=5)
    for _ in range(2):  # made, then found
        made = cached_embeddings(network(), task(folder, images), inference())
        assert made.table.bad.tolist() == bad
        np.testing.assert_allclose(made.table.rows(good), expected.features, atol=1e-6)
        with pytest.raises(DistillError, match="no embedding of image 17"):
            made.table.rows(np.array([1, 17]))
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["bad_images"] == {str(i): images.describe(i) for i in bad}
    assert np.isnan(np.load(folder / "embeddings.npy")[bad]).all()


def test_an_image_that_could_not_be_read_in_passing_is_tried_again(folder, some_bad, capsys):
    images, bad = some_bad
    cached_embeddings(network(), task(folder, images), inference())
    Path(images.path(17)).write_bytes(Path(images.path(1)).read_bytes())
    made = cached_embeddings(network(), task(folder, images), inference())
    assert made.table.bad.tolist() == [one for one in bad if one != 17]
    assert made.num_embedded == SHARD  # the other shards were not made again
    rows = made.table.rows(np.array([1, 17]))
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)
    assert "lacks images among 16 to 23 that can be read now" in capsys.readouterr().out


def test_a_bad_image_may_end_the_pass(folder, some_bad):
    def fail(names):
        raise BadImageError(f"{names[0]} cannot be read")

    with pytest.raises(BadImageError, match="cannot be read"):
        cached_embeddings(network(), task(folder, some_bad[0]), inference(on_bad_images=fail))
    assert not EmbeddingStore.find(folder).done().any()


# Other processes, the disk, memory.


def test_a_complete_cache_needs_no_permission_to_write(folder, monkeypatch):
    images, teacher = pictures(), network()
    cached_embeddings(teacher, task(folder, images), inference())

    def refuse(*_, **__):
        raise DistillError("this would write")

    for name in ("name_bad_images", "_write", "create"):
        monkeypatch.setattr(EmbeddingStore, name, refuse)
    monkeypatch.setattr(cache_module, "locked", refuse)
    assert cached_embeddings(teacher, task(folder, images), inference()).num_embedded == 0


def test_what_another_process_made_meanwhile_is_not_made_again(folder, monkeypatch):
    images, teacher, other = pictures(), network(), network()
    locked = cache_module.locked

    def wait(folder, *, on_wait):
        monkeypatch.setattr(cache_module, "locked", locked)
        cached_embeddings(other, task(folder, images), inference())  # what was waited for
        return locked(folder, on_wait=on_wait)

    monkeypatch.setattr(cache_module, "locked", wait)
    made = cached_embeddings(teacher, task(folder, images), inference())
    assert (teacher.backbone.num_seen, other.backbone.num_seen) == (0, NUM_IMAGES)
    assert made.num_embedded == 0


def test_the_folder_is_locked_while_it_is_filled(folder):
    lock, tried = filelock.FileLock(folder / ".lock", timeout=0), []

    def try_lock():
        with pytest.raises(filelock.Timeout):
            lock.acquire()
        tried.append(True)

    cached_embeddings(interrupted_at(20, try_lock), task(folder, pictures()), inference())
    assert tried
    lock.acquire()
    lock.release()


def test_a_full_disk_ends_the_pass_at_once(folder, monkeypatch):
    teacher = network().train()

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EmbeddingStore, "_write", refuse)
    with pytest.raises(DistillError, match="No space left on device; keep them elsewhere"):
        cached_embeddings(teacher, task(folder, pictures()), inference())
    assert teacher.training
    assert teacher.backbone.num_seen <= SHARD + 5


def test_memory_does_not_grow_with_the_number_of_images(folder, monkeypatch):
    """In NumPy and bytes: at most a few shards; in PyTorch: no tensor of more than a shard."""
    width, number, rows = 512, 1024, 32
    monkeypatch.setattr(store, "MAX_SHARD_ROWS", rows)
    images = ArrayImages(np.zeros((number, 4, 4), np.uint8), name="black")
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, width))
    teacher = wrap_module(module, image_size=SIDE)
    wanted = task(folder, images, shape=(number, width))
    largest = []
    to, from_numpy = torch.Tensor.to, torch.from_numpy

    def spied(tensor, *args, **kwargs):
        result = to(tensor, *args, **kwargs)
        largest.append(result.numel())
        return result

    monkeypatch.setattr(torch.Tensor, "to", spied)
    monkeypatch.setattr(torch, "from_numpy", lambda a: largest.append(a.size) or from_numpy(a))
    tracemalloc.start()
    try:
        cached_embeddings(teacher, wanted, inference(rows))
        table = cached_embeddings(teacher, wanted, inference(rows)).table
        table.rows(np.arange(rows))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(largest) <= rows * width
    assert peak < number * width * 4 / 4, peak  # a quarter of the table


# Several ranks.


def test_rows_that_do_not_arrive_are_an_error(folder, monkeypatch):
    """What a process sees of others that write to another disk under the same name."""
    monkeypatch.setattr(cache_module, "fill", lambda *_, **__: set())
    with pytest.raises(DistillError, match="process 0 does not see the embeddings that others"):
        cached_embeddings(network(), task(folder, pictures()), inference())


def fill_as_a_rank(folder: str) -> dict:
    store.MAX_SHARD_ROWS = SHARD
    teacher = network()
    made = cached_embeddings(teacher, task(Path(folder), pictures()), inference(SHARD))
    rows = made.table.rows(ALL).numpy()
    return {"rows": rows, "seen": teacher.backbone.num_seen, "made": made.num_embedded}


@pytest.mark.ddp
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_share_the_work_and_the_result(run_ranks, tmp_path, num_ranks):
    expected = fill_as_a_rank(str(tmp_path / "one"))["rows"]
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
    assert {result["made"] for result in results} == {2 * SHARD}


def fill_a_folder_of_its_own(folder: str) -> str:
    try:
        fill_as_a_rank(f"{folder}-{distributed.rank()}")
    except DistillError as error:
        return str(error)
    except RuntimeError:  # the other one left
        return "left alone"
    return "done"


@pytest.mark.ddp
def test_a_folder_that_ranks_do_not_share(run_ranks, folder):
    results = run_ranks(fill_a_folder_of_its_own, 2, str(folder))
    assert "process 1 does not see the embeddings that others wrote to" in results[1]
    assert "must be on a file system that all processes share; name one with" in results[1]


def bad_images_of_ranks(root: str, folder: str) -> list[list[int]]:
    store.MAX_SHARD_ROWS = SHARD
    wanted = task(Path(folder), open_images(root).train)
    tables = [cached_embeddings(network(), wanted, inference()).table for _ in range(2)]
    return [table.bad.tolist() for table in tables]  # made, then found


@pytest.mark.ddp
def test_ranks_know_all_bad_images(run_ranks, folder, make_folder):
    root = make_folder()
    images = open_images(root).train
    for i in (1, 35):
        Path(images.path(i)).write_bytes(b"x")
    bad = run_ranks(bad_images_of_ranks, 2, str(root), str(folder))
    assert bad == [[[1, 35], [1, 35]]] * 2
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(manifest["bad_images"]) == ["1", "35"]


# What a cache is keyed by, and where it lies.


def network_cache(*, teacher=None, images=None, precision="fp32", **settings) -> NetworkCache:
    data = ImageData(name="pictures", train=images or pictures(), val=None)
    bad_images = BadImages("fail")
    embedder = DatasetEmbedder(data, ALL, np.arange(0), CPU, precision, 0, 5, bad_images)
    return NetworkCache(teacher or network(), "teacher", embedder, bad_images, **settings)


def other_weights():
    changed = network()
    with torch.no_grad():
        changed.backbone.layer.bias[0] += 1e-3
    return changed


def other_view():
    spec = InputSpec(SIDE, crop_fraction=1.0)
    return build_network(NetworkSpec(name="counted", build=lambda size: Counted(), input=spec))


def other_pixel():
    images = pictures()
    images.pixels[7, 3, 2, 1] ^= 1
    return images


@pytest.mark.parametrize(
    "changed",
    [
        lambda: {"teacher": other_weights()},
        lambda: {"teacher": other_view()},
        lambda: {"images": other_pixel()},
        lambda: {"precision": "bf16"},
        lambda: {"dtype": "bf16"},
    ],
    ids=["weights", "view", "images", "precision", "dtype"],
)
def test_what_decides_the_numbers_makes_another_cache(changed):
    plain = network_cache().task("train")
    assert plain.folder == network_cache().task("train").folder
    assert plain.folder.name == f"counted-pictures-train-{plain.contents.key()}"
    assert network_cache(**changed()).task("train").folder != plain.folder


def test_the_whole_view_is_part_of_the_key():
    """Its names and values; that each of them changes the key is tested with the store."""
    shown = InputSpec(SIDE + 1, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.5, "bicubic")
    spec = NetworkSpec(name="counted", build=lambda size: Counted(), input=shown)
    contents = network_cache(teacher=build_network(spec)).task("train").contents
    assert {name: getattr(contents, name) for name in vars(shown)} == vars(shown)


def test_a_module_of_ones_own_has_its_own_key():
    """Its class, its weights and what it makes of fixed images; nothing but names would be less."""
    flat, other = (wrap_module(module, image_size=SIDE) for module in (Counted(), Counted()))
    with torch.no_grad():
        other.backbone.layer.weight[0, 0, 0, 0] += 1
    folders = {network_cache(teacher=one).task("train").folder for one in (flat, other)}
    assert len(folders) == 2


def test_a_cache_is_made_once_and_read_by_index(tmp_path):
    cache = network_cache(folder=tmp_path / "mine", dtype="fp32")
    assert not cache.is_complete("train")
    stored = cache.stored("train", np.array([4, 2]))
    assert stored.index.tolist() == [2, 4]  # in the order of the set
    expected = embed(network(), pictures(), batch_size=5).features
    np.testing.assert_array_equal(stored.in_memory().features, expected[[2, 4]])
    assert cache.is_complete("train")
    assert cache.stored("train").labels.tolist() == [-1] * NUM_IMAGES
    assert cache.network.backbone.num_seen == NUM_IMAGES
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["train"]


def test_objects_have_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8)).astype(np.uint8)
    data = [(torch.from_numpy(image), i % 2) for i, image in enumerate(pixels)]
    for num_embedded in (12, 0):
        teacher = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        made = distill.cache(data=data, teacher=teacher, device="cpu", num_workers=0)
        assert list(made) == ["train"]
        assert (made["train"].num_images, made["train"].num_embedded) == (12, num_embedded)
