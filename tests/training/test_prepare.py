"""What a distillation job refuses, and how much memory it asks for, under several ranks."""

import numpy as np
import pytest
import torch
from torch import nn

from distill import distributed
from distill.data.sources import BadImages
from distill.errors import DistillError
from distill.training import setup as job
from distill.training.checkpoints import Progress
from distill.training.configuration import TrainConfig, with_options
from distill.training.objects import RunObjects

CPU = torch.device("cpu")
TINY = {"teacher": "pixels", "student": "timm:test_resnet", "data": "digits", "image_size": 32}
QUEUE = {"queue_size": 10, "variant": "two-queue"}


@pytest.fixture
def three_ranks(monkeypatch):
    """The second of three ranks on one machine, up to the exchanges."""
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "num_local_ranks", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 1)


def asked_for(monkeypatch, tmp_path, **options) -> dict[str, int]:
    asked = {}
    monkeypatch.setattr(
        job, "require_memory", lambda number, device, *, what, remedy: asked.update({what: number})
    )
    options = {
        "output": tmp_path / "run",
        **(options if "method" in options else {**QUEUE, **options}),
    }
    config = with_options(TrainConfig(), {**TINY, **options}, source="test")
    job.prepare(config, CPU)
    return asked


@pytest.mark.parametrize(("sharding", "rows"), [("ranks", 4), ("none", 10)])
def test_the_queue_of_every_rank_of_the_machine_must_fit(
    three_ranks, monkeypatch, tmp_path, sharding, rows
):
    asked = asked_for(monkeypatch, tmp_path, queue_sharding=sharding)
    row = (192 + 96) * 4 + 8
    assert asked["a queue of 10 anchors in 3 processes"] == 3 * rows * row
    assert len(asked) == 1  # the teacher's embeddings are on disk


def test_one_process_needs_the_whole_queue(monkeypatch, tmp_path):
    asked = asked_for(monkeypatch, tmp_path)
    assert asked["a queue of 10 anchors"] == 10 * ((192 + 96) * 4 + 8)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("seed", {"a queue of 10 anchors in 3 processes": 3 * 10 * (192 * 4 + 8)}),
        ("crd", {"memories of 1,365 images in 3 processes": 3 * 2 * 1365 * 7 * 4}),
        ("clusterfit", {"clustering 1,365 embeddings": 3 * 1365 * 192 * 4}),
        ("simreg", {}),
    ],
)
def test_what_a_baseline_remembers_must_fit(three_ranks, monkeypatch, tmp_path, method, expected):
    options = {"seed": {"queue_size": 10}, "crd": {"head_dim": 7}}.get(method, {})
    assert asked_for(monkeypatch, tmp_path, method=method, **options) == expected


def test_a_bank_of_all_images_must_fit_as_well(monkeypatch, tmp_path):
    options = {"anchors": "dataset", "queue_size": None, "holdout": 0.0}
    asked = asked_for(monkeypatch, tmp_path, **options)
    assert asked == {"a bank of 1,437 anchors": 1437 * ((192 + 96) * 4 + 8)}


def test_the_reference_loss_needs_all_anchors(three_ranks, monkeypatch, tmp_path):
    reference = {"loss_implementation": "reference"}
    with pytest.raises(DistillError, match="sharded over 3 ranks; use another loss implementation"):
        asked_for(monkeypatch, tmp_path, **reference)
    assert asked_for(monkeypatch, tmp_path, **reference, queue_sharding="none")


def test_ranks_tell_each_other_what_they_skipped(monkeypatch, capsys):
    bad_images = BadImages("skip")
    bad_images(["a.png"])
    monkeypatch.setattr(distributed, "all_gather_set", lambda names: names | {"b.png"})
    bad_images.share()
    bad_images.share()
    assert bad_images.skipped == {"a.png", "b.png"}
    assert capsys.readouterr().out.count("skipped b.png") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_crop_area": 0.5, "augmentation": "none"}, "--min-crop-area 0.5 goes with crops"),
        ({"student_crops": 2, "augmentation": "none"}, "makes all --student-crops 2 of an image"),
        ({"variant": "one-queue", "projection_dim": 7}, "192 wide, and the student's .* 7 wide"),
        ({"method": "clusterfit", "num_clusters": 1438}, "it must be at most the number of images"),
    ],
)
def test_what_does_not_fit_data_and_networks_is_refused(monkeypatch, tmp_path, options, message):
    with pytest.raises(DistillError, match=message):
        asked_for(monkeypatch, tmp_path, **options)
    assert not (tmp_path / "run").exists()


def images_of_an_epoch(data, **options) -> tuple[job.DistillationSetup, list[int]]:
    options = {"data": data, "output": data / "run", "num_workers": 0, "batch_size": 8, **options}
    made = job.prepare(with_options(TrainConfig(), {**TINY, **options}, source="test"), CPU)
    batches = made.batches(Progress(), num_epochs=1)
    return made, [index for batch in batches for index in batch.index.tolist()]


def test_held_out_images_are_not_trained_on_and_no_anchors(make_folder):
    made, seen = images_of_an_epoch(make_folder(), holdout=0.25)
    images = made.images
    assert len(images.held_out) == 9  # of 36
    assert not set(images.trained) & set(images.held_out)
    assert sorted(seen) == images.trained.tolist()
    np.testing.assert_array_equal(made.context.images, images.trained)


def test_the_seed_of_the_run_decides_hold_out_and_order(make_folder):
    data, held_out, orders = make_folder(), [], []
    for seed in (0, 0, 1):
        made, _ = images_of_an_epoch(data, seed=seed, holdout=0.25)
        held_out.append(made.images.held_out.tolist())
        orders.append(images_of_an_epoch(data, seed=seed, holdout=0.0)[1])
    assert held_out[0] == held_out[1] != held_out[2]
    assert orders[0] == orders[1] != orders[2]


def test_a_teacher_of_ones_own_is_frozen(tmp_path):
    layers = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6)]
    module = nn.Sequential(*layers)
    options = {**TINY, "teacher": "module:mine", "output": tmp_path / "run", "num_workers": 0}
    config = with_options(TrainConfig(), options, source="test")
    made = job.prepare(config, CPU, RunObjects(teacher=module))
    made.teacher.train()
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())
