import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distill.data.sources import hold_out, open_images
from distill.embeddings.embed import DatasetEmbedder
from distill.errors import DistillError
from distill.run_directory import RunDirectory
from distill.training import fitting as monitor
from distill.training.checkpoints import About, Progress, save_checkpoint
from distill.training.configuration import TrainConfig, identity
from teachers.load import load_teacher


@pytest.fixture
def embedder(make_folder):
    data = open_images(make_folder(num_train=20))
    return DatasetEmbedder(
        data=data,
        train_index=np.arange(len(data.train)),
        val_index=np.arange(len(data.val)),
        device=torch.device("cpu"),
        precision="fp32",
        num_workers=0,
    )


def test_held_out_images_are_looked_up_among_the_trained(embedder):
    trained, held_out = hold_out(embedder.data.train, 0.2, seed=0)
    without_val = dataclasses.replace(embedder, data=dataclasses.replace(embedder.data, val=None))
    check = monitor.HoldoutMonitor(without_val, trained, held_out, seed=0)
    assert check.unavailable_reason() is None
    assert check.accuracy(load_teacher("pixels")) == 1


def test_held_out_images_do_not_find_themselves(embedder, monkeypatch):
    sizes = []

    def counted(*sides: np.ndarray) -> float:
        sizes.extend(len(side) for side in sides)
        return 0.5

    monkeypatch.setattr(monitor, "nn_accuracy", counted)
    trained, held_out = hold_out(embedder.data.train, 0.2, seed=0)
    check = monitor.HoldoutMonitor(embedder, trained, held_out, seed=0)
    assert check.accuracy(load_teacher("pixels")) == 0.5
    assert sizes == [48, 48, 12, 12]  # embeddings and labels of both sides


def test_both_sides_are_capped(embedder, monkeypatch):
    monkeypatch.setattr(monitor, "MAX_INDEXED", 10)
    monkeypatch.setattr(monitor, "MAX_QUERIES", 4)
    trained, held_out = hold_out(embedder.data.train, 0.2, seed=0)
    check = monitor.HoldoutMonitor(embedder, trained, held_out, seed=0)
    assert (len(check.indexed), len(check.queries)) == (10, 4)
    assert not set(check.indexed) & set(check.queries)


def test_what_keeps_it_from_measuring(embedder):
    everything = np.arange(60)
    none_held = monitor.HoldoutMonitor(embedder, everything, np.arange(0), seed=0)
    assert "no image is held out" in none_held.unavailable_reason()
    one_class = monitor.HoldoutMonitor(embedder, np.arange(10), np.arange(10, 12), seed=0)
    assert "are of 1 class" in one_class.unavailable_reason()


def test_the_embedder_says_what_is_missing(embedder):
    assert embedder.unavailable_reason() is None
    without_val = dataclasses.replace(embedder, data=dataclasses.replace(embedder.data, val=None))
    assert "has no validation images" in without_val.unavailable_reason()
    with pytest.raises(DistillError, match="has no validation images"):
        without_val.embed_both(load_teacher("pixels"), what="teacher")
    one_class = dataclasses.replace(embedder, train_index=np.arange(20))
    assert "are of 1 class" in one_class.unavailable_reason()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run, config = RunDirectory(tmp_path / "run", resume=False), TrainConfig()
    about = About(run={**identity(config), "seed": 7, "device": "cuda"})
    save_checkpoint(run.checkpoints, Progress(step=3), {}, about=about)
    message = (
        r"step-000000003\.\w+ is of another run: --seed is 7 in the checkpoint and 0 in the run\. "
    )
    with pytest.raises(DistillError, match=message):
        monitor.restore(SimpleNamespace(config=config), run, learner=None)
