"""The teacher's embeddings of a training job: made once, looked up, measured."""

from pathlib import Path

import numpy as np
import pytest
import torch

import distill
from distill import device
from distill.config import updated
from distill.data.loader import evaluation_loader
from distill.embeddings.embed import NetworkView
from distill.errors import DistillError
from distill.models.networks import EmbeddingNetwork
from distill.run_directory import RunDirectory, read_metrics
from distill.training import train as baselines
from distill.training.configuration import TrainConfig
from distill.training.setup import prepare
from distill.training.teacher import OnlineTeacher
from distill.training.train import teacher_embeddings

CPU = torch.device("cpu")
TEACHER, STUDENT = "pixels", "timm:test_resnet"
TINY = {"teacher": TEACHER, "student": STUDENT, "image_size": 32, "num_workers": 0}
TINY |= {"batch_size": 8, "epochs": 2, "precision": "fp32"}


@pytest.fixture(autouse=True)
def cold_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


@pytest.fixture
def seen(monkeypatch) -> list[int]:
    """The numbers of images that the teacher embedded, but for the one that tells its width."""
    numbers, forward = [], EmbeddingNetwork.forward

    def counted(self, images):
        if self.spec.name == TEACHER and hasattr(self, "embedding_dim"):
            numbers.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(EmbeddingNetwork, "forward", counted)
    return numbers


def train(output: Path, data: Path, **options) -> dict:
    given = {**TINY, "data": data, "output": output, **options}
    result = distill.train(**given)
    assert result.stopped_by is None
    return {**result.metrics, "train_seconds": 0}


def test_training_twice_embeds_the_teacher_once(make_folder, tmp_path, seen):
    data = make_folder()
    first = train(tmp_path / "a", data, holdout=0.5)
    assert sum(seen) == 36 + 12
    assert train(tmp_path / "b", data, holdout=0.5) == first
    train(tmp_path / "c", data, holdout=0.1, seed=3)  # held-out images have rows, too
    assert sum(seen) == 36 + 12


def test_distill_cache_makes_what_training_looks_up(make_folder, tmp_path, seen):
    data = make_folder()
    given = {"cache_dtype": "bf16", "teacher_image_size": 6, "teacher_batch_size": 5}
    made = distill.cache(teacher=TEACHER, data=data, num_workers=0, **given)
    assert [(split, one.num_embedded) for split, one in made.items()] == [
        ("train", 36),
        ("val", 12),
    ]
    assert all(one.images_per_second > 0 for one in made.values())
    assert (max(seen), sum(seen)) == (5, 36 + 12)
    seen.clear()
    train(tmp_path / "a", data, **{**given, "precision": "auto", "seed": 4})
    again = distill.cache(teacher=TEACHER, data=data, num_workers=0, **given)
    assert seen == []
    assert [one.images_per_second for one in again.values()] == [None] * 2
    for one, other in zip(again.values(), made.values(), strict=True):
        assert one.folder == other.folder
        assert one.num_bytes == sum(path.stat().st_size for path in one.folder.iterdir())


def test_a_folder_of_ones_own(make_folder, tmp_path, seen, cold_cache):
    data, folder = make_folder(), tmp_path / "mine"
    train(tmp_path / "a", data, teacher_cache=folder)
    assert sorted(path.name for path in folder.iterdir()) == ["train", "val"]
    assert not cold_cache.exists()
    with pytest.raises(DistillError, match=r"mine/train holds other embeddings .*dtype: fp16 in "):
        train(tmp_path / "b", data, teacher_cache=folder, cache_dtype="fp32")
    assert not (tmp_path / "b" / "config.yaml").exists()  # nothing to resume: the same flags again
    train(tmp_path / "b", data, teacher_cache=folder)


def test_a_cache_may_move_between_sittings_but_not_change(make_folder, tmp_path, capsys):
    data, run = make_folder(), tmp_path / "run"
    train(run, data, epochs=1)
    moved = {"output": run, "resume": True}
    assert distill.train(**moved, teacher_cache=tmp_path / "mine").stopped_by is None
    assert (tmp_path / "mine" / "train" / "manifest.json").exists()
    with pytest.raises(DistillError, match="--cache-dtype is fp16 in the run and fp32 was asked"):
        distill.train(**moved, cache_dtype="fp32")


@pytest.fixture
def make_job(tmp_path):
    def make(data, name="job", **options):
        given = {**TINY, "data": data, "output": tmp_path / name, **options}
        config = updated(TrainConfig(), given, source="the test")
        return prepare(config, CPU), RunDirectory(tmp_path / name, resume=False)

    return make


@pytest.mark.parametrize("teacher", ["pixels", "digits-cbyol"])
def test_rows_in_fp32_are_what_a_running_teacher_gives(make_folder, make_job, teacher):
    job, run = make_job(make_folder(), teacher=teacher, cache_dtype="fp32", seed=5)
    table = teacher_embeddings(job, run).train
    online = OnlineTeacher(job.teacher, CPU, precision="fp32", batch_size=None)
    images, view = job.images.data.train, NetworkView(job.teacher.input)
    loader = evaluation_loader(images, view.build(), batch_size=36, num_workers=0)
    expected = online(next(iter(loader)))
    torch.testing.assert_close(table.rows(np.arange(36)), expected, rtol=1e-5, atol=1e-6)


def test_a_teacher_is_measured_from_its_cache(make_folder, tmp_path, monkeypatch, capsys):
    data = make_folder()
    on_disk = train(tmp_path / "a", data, cache_dtype="fp32")
    running = train(tmp_path / "b", data, teacher_view="student", teacher="pixels", image_size=8)
    assert on_disk["teacher_nn_accuracy"] == running["teacher_nn_accuracy"] == 1
    assert on_disk["teacher_cluster_alignment"] == running["teacher_cluster_alignment"]


def test_a_teacher_that_does_not_fit_is_not_measured(make_folder, tmp_path, monkeypatch, capsys):
    data = make_folder()
    needed = 3 * 48 * 192 * 4  # three copies in float32

    def free_memory(device):
        return needed / 0.9 - 1

    with monkeypatch.context() as patch:
        asked = []
        patch.setattr(baselines, "require_memory", lambda number, *_, **__: asked.append(number))
        train(tmp_path / "a", data)
        assert asked == [needed]
    require = device.require_memory

    def require_little(number, *arguments, **words):
        monkeypatch.setattr(device, "free_memory", free_memory)
        return require(number, *arguments, **words)

    monkeypatch.setattr(baselines, "require_memory", require_little)
    capsys.readouterr()
    metrics = train(tmp_path / "b", data)
    assert "teacher_nn_accuracy" not in metrics
    assert "untrained_nn_accuracy" in metrics
    printed = capsys.readouterr().out
    assert "the teacher is not measured: looking up 48 embeddings needs 0.0 GiB" in printed
    assert "training goes on without its numbers" in printed


def test_validation_images_are_embedded_only_to_measure(make_folder, tmp_path, seen, cold_cache):
    folder = make_folder() / "train" / "class0"
    train(tmp_path / "a", folder)
    assert sum(seen) == 12
    assert [path.name.rsplit("-", 1)[0] for path in cold_cache.iterdir()] == ["pixels-class0"]


def test_bad_images_in_a_cache_are_told(make_folder, tmp_path, capsys):
    data = make_folder()
    (data / "train" / "class1" / "000.png").write_bytes(b"not an image")
    skip = {"on_bad_image": "skip"}
    for name in "ab":  # made, then found
        assert train(tmp_path / name, data, **skip)["num_skipped_images"] == 1
    distill.cache(teacher=TEACHER, data=data, precision="fp32", num_workers=0, **skip)
    assert "skipped" in capsys.readouterr().out
    with pytest.raises(DistillError, match=r"000.png cannot be read as an image; remove it, or"):
        distill.cache(teacher=TEACHER, data=data, precision="fp32", num_workers=0)


def test_a_teacher_is_measured_without_images_that_cannot_be_read(
    make_folder, tmp_path, monkeypatch
):
    data = make_folder()
    for name in ("train/class1/000.png", "val/class0/002.png"):
        (data / name).write_bytes(b"not an image")
    monkeypatch.setattr("distill.data.sources.scan_is_cheap", lambda images: False)
    metrics = train(tmp_path / "a", data, on_bad_image="skip")
    assert metrics["teacher_nn_accuracy"] == 1
    assert metrics["num_skipped_images"] == 2


def test_a_folder_that_cannot_be_written_ends_before_the_run_exists(
    make_folder, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    with pytest.raises(DistillError, match="or keep none with --teacher-view student"):
        train(tmp_path / "run", make_folder(), teacher_cache=tmp_path / "file")
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert read_metrics(tmp_path / "run") == {}
