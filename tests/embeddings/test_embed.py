import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from distill.data.images import FolderImages
from distill.data.sources import open_images
from distill.embeddings.embed import DatasetEmbedder, InferenceConfig, embed, embedded_batches
from distill.errors import DistillError, LoaderDiedError
from distill.models.networks import InputSpec, NetworkSpec, build_network

CPU = torch.device("cpu")


def network(**changes):
    spec = InputSpec(6, mean=(0.0,) * 3, std=(1.0,) * 3, **changes)
    return build_network(NetworkSpec(name="pixels", build=lambda size: nn.Identity(), input=spec))


def test_every_image_once_in_order_with_its_label(make_folder):
    images = open_images(make_folder()).train
    found = embed(network(), images, batch_size=5)
    assert list(found.index) == list(range(36))
    assert list(found.labels) == list(images.labels)
    assert found.features.shape == (36, 3 * 6 * 6)
    assert found.features.dtype == np.float32
    subset = embed(network(), images, indices=np.array([7, 2, 30]), num_workers=1)
    assert list(subset.index) == [7, 2, 30]
    np.testing.assert_array_equal(subset.features, found.features[[7, 2, 30]])


def test_a_loader_that_dies_ends_the_pass(make_folder, tmp_path):
    root = make_folder() / "train"
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))

    class Deadly(FolderImages):
        def load(self, i):
            if i == 12 and not (tmp_path / "dead").exists():
                (tmp_path / "dead").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().load(i)

    broken = Deadly(root, files, name="photos")
    with pytest.raises(LoaderDiedError, match="a process that loads images"):
        embed(network(), broken, batch_size=5, num_workers=1)


def test_the_networks_own_view_is_taken(make_folder):
    images = open_images(make_folder()).train
    whole = embed(network(crop_fraction=1.0), images)
    center = embed(network(crop_fraction=0.5), images)
    assert np.abs(whole.features - center.features).max() > 0.01
    expected = np.asarray(images.load(3).resize((6, 6), 2)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(whole.features[3], expected.ravel(), atol=1e-6)


def test_images_that_cannot_be_read_are_absent_and_told(make_folder):
    root = make_folder()
    (root / "train" / "class0" / "001.png").write_bytes(b"x")
    told = []
    found = embed(
        network(),
        open_images(root).train,
        on_bad_images=told.extend,
    )
    assert 1 not in found.index
    assert len(found.index) == 35 == len(found.features)
    assert [name.endswith("001.png") for name in found.bad] == [True]
    assert tuple(told) == found.bad


def test_evaluation_mode_and_back(make_folder):
    spec = NetworkSpec(name="d", build=lambda size: nn.Dropout(0.5), input=InputSpec(6))
    trained = build_network(spec).train()
    images = open_images(make_folder()).train
    first, second = (embed(trained, images) for _ in range(2))
    np.testing.assert_array_equal(first.features, second.features)
    assert trained.training


def test_no_images_have_no_embeddings(make_folder):
    images = open_images(make_folder()).train
    found = embed(network(), images, indices=np.arange(0))
    assert found.features.shape == (0, 3 * 6 * 6)
    assert (found.features.dtype, found.index.dtype) == (np.float32, np.int64)


def test_batches_are_embedded_as_they_are_asked_for(make_folder):
    images, trained = open_images(make_folder()).train, network().train()
    batches = embedded_batches(trained, images, InferenceConfig(CPU, "fp32", 10, num_workers=0))
    assert list(next(batches).index) == list(range(10))
    assert torch.is_grad_enabled()
    assert not trained.training
    batches.close()
    assert trained.training


def test_both_splits_are_embedded_where_there_are_labels_to_measure_with(make_folder):
    root = make_folder()
    data = open_images(root)
    embedder = DatasetEmbedder(data, np.arange(1, 36), np.arange(12), CPU, "fp32", num_workers=0)
    train, val = embedder.embed_both(network(), what="pixels")
    assert (list(train.index), list(val.index)) == (list(range(1, 36)), list(range(12)))
    assert list(val.labels) == list(data.val.labels)
    without = DatasetEmbedder(open_images(root / "train"), np.arange(36), np.arange(0), CPU, "fp32")
    with pytest.raises(DistillError, match="train has no validation images"):
        without.embed_both(network(), what="pixels")
