"""Heads on augmented views: what is embedded, in which order, with which labels."""

import numpy as np
import pytest
import torch

from distill.data.loader import TrainingViews
from distill.data.sources import open_images
from distill.data.views import training_view
from distill.embeddings.embed import InferenceConfig, embed
from distill.errors import BadImageError
from distill.evaluation.linear import LabeledEmbeddings, linear_evaluation
from distill.evaluation.linear_heads import AugmentedBatches, LinearSchedule, Standardizer
from students.registry import build_student
from teachers.load import load_teacher

CPU = torch.device("cpu")
SHORT = LinearSchedule(num_epochs=2, batch_size=8)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_student("timm:test_resnet", image_size=32)


def made(network, data, **changes) -> AugmentedBatches:
    index = np.arange(len(data.train))[::-1].copy()
    settings = {
        "how": InferenceConfig(CPU, "fp32"),
        "augmentation": "crop-flip",
        "schedule": SHORT,
        "seed": 5,
    }
    return AugmentedBatches(network, data.train, index, **{**settings, **changes})


def test_batches_are_standardized_embeddings_of_training_views(network, make_folder):
    data = open_images(make_folder())
    rows = np.arange(3, 23)
    made_of = made(network, data)
    standardizer = Standardizer(torch.full((network.embedding_dim,), 0.01), torch.tensor(3.0))
    network.train()
    batches = list(made_of(rows, standardizer))
    assert network.training
    network.eval()
    assert [len(batch.labels) for batch in batches] == [8, 8, 4] * 2
    assert [batch.epoch for batch in batches] == [0] * 3 + [1] * 3
    views = TrainingViews(data.train, made_of.index[rows], training_view(32), seed=5)
    for epoch in range(2):
        order = np.random.default_rng([5, epoch]).permutation(made_of.index[rows])
        images = torch.stack([views[epoch, int(index)].view for index in order[:8]])
        with torch.no_grad():
            expected = standardizer(network(images))
        torch.testing.assert_close(batches[3 * epoch].rows, expected, rtol=1e-4, atol=1e-5)
        assert batches[3 * epoch].labels.tolist() == data.train.labels[order[:8]].tolist()


def test_heads_learn_from_them(make_folder):
    data = open_images(make_folder(num_train=16))
    pixels = load_teacher("pixels", image_size=8)
    how = InferenceConfig(CPU, "fp32")
    train = embed(pixels, data.train, device=CPU, precision="fp32")
    val = embed(pixels, data.val, device=CPU, precision="fp32")
    labeled = LabeledEmbeddings(train.features, train.labels, val.features, val.labels)
    schedule = LinearSchedule(num_epochs=10, batch_size=16)
    batches = AugmentedBatches(pixels, data.train, train.index, how, "crop-flip", schedule, 0)
    found = linear_evaluation(labeled, device=CPU, schedule=schedule, make_batches=batches)
    assert found.published.accuracy == 1


def test_images_that_cannot_be_read(network, make_folder):
    folder = make_folder()
    (folder / "train" / "class0" / "000.png").write_bytes(b"")
    data = open_images(folder)
    unit = Standardizer(torch.zeros(network.embedding_dim), torch.tensor(1.0))
    batches = list(made(network, data)(np.arange(len(data.train)), unit))
    assert sum(len(batch.labels) for batch in batches) == 2 * (len(data.train) - 1)

    def fail(names):
        raise BadImageError(names[0])

    failing = made(network, data, how=InferenceConfig(CPU, "fp32", on_bad_images=fail))
    with pytest.raises(BadImageError, match=r"000\.png"):
        list(failing(np.arange(len(data.train)), unit))
