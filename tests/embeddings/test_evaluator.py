import numpy as np
import pytest
import torch

from distill.data.sources import open_images
from distill.embeddings import evaluator as module
from distill.embeddings.evaluator import Evaluator
from teachers.load import load_teacher


@pytest.fixture
def evaluator(make_folder):
    data = open_images(make_folder())
    return Evaluator(
        data=data,
        train_index=np.arange(len(data.train)),
        val_index=np.arange(len(data.val)),
        device=torch.device("cpu"),
        precision="fp32",
        num_workers=0,
    )


@pytest.fixture
def passes(monkeypatch):
    """What was embedded: (progress bar, images) a pass."""
    made = []

    def counted(network, images, **settings):
        made.append((settings["description"], len(settings["indices"])))
        return embed(network, images, **settings)

    embed = module.embed
    monkeypatch.setattr(module, "embed", counted)
    return made


def test_embeddings_that_are_known_are_not_made_again(evaluator, passes):
    pixels = load_teacher("pixels")
    train, val = evaluator.embed_both(pixels, what="teacher")
    assert passes == [("teacher, train", 36), ("teacher, val", 12)]
    again, _ = evaluator.embed_both(pixels, what="teacher", train=train)
    assert passes[2:] == [("teacher, val", 12)]
    assert again is train
    assert len(val.labels) == 12


def test_classes_of_the_images_that_can_be_read(evaluator, make_folder):
    assert evaluator.num_classes() == 3
    data = evaluator.data
    without = Evaluator(data, np.arange(12, 36), evaluator.val_index, torch.device("cpu"), "fp32")
    assert without.num_classes() == 2
    unlabeled = open_images(make_folder("more") / "train" / "class0")
    without = Evaluator(unlabeled, np.arange(12), np.arange(0), torch.device("cpu"), "fp32")
    assert without.num_classes() == 0
