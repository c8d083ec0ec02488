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


def test_both_measures_from_one_pass_of_each_split(evaluator, passes):
    pixels = load_teacher("pixels")
    measured = evaluator.measure(pixels, what="teacher")
    assert passes == [("teacher, train", 36), ("teacher, val", 12)]
    assert measured == {
        "nn_accuracy": evaluator.embed_both(pixels, what="teacher").nn_accuracy(),
        "cluster_alignment": evaluator.embed_both(pixels, what="teacher").cluster_alignment(),
    }
    assert measured["nn_accuracy"] == 1  # the classes differ in hue


def test_embeddings_that_are_known_are_not_made_again(evaluator, passes):
    pixels = load_teacher("pixels")
    splits = evaluator.embed_both(pixels, what="teacher")
    passes.clear()
    again = evaluator.measure(pixels, what="teacher", train=splits.train)
    alignment = evaluator.embed_both(pixels, what="teacher", train=splits.train).cluster_alignment()
    assert passes == [("teacher, val", 12)] * 2
    assert splits.nn_accuracy() == again["nn_accuracy"]
    assert splits.cluster_alignment() == again["cluster_alignment"] == alignment


def test_classes_of_the_images_that_can_be_read(evaluator, make_folder):
    assert evaluator.num_classes() == 3
    data = evaluator.data
    without = Evaluator(data, np.arange(12, 36), evaluator.val_index, torch.device("cpu"), "fp32")
    assert without.num_classes() == 2
    unlabeled = open_images(make_folder("more") / "train" / "class0")
    without = Evaluator(unlabeled, np.arange(12), np.arange(0), torch.device("cpu"), "fp32")
    assert without.num_classes() == 0
