"""Files that are flipped, cut or padded anywhere are refused in a sentence, or read correctly.

Every kind of file that carries a checksum, at seeded places: never another exception, never other
numbers than were written.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.errors import DistillError
from distill.models.layout import PyTorchLayout, TensorFlowLayout
from distill.models.networks import EmbeddingNetwork, InputSpec, NetworkSpec, build_network
from distill.models.weights import load_weights, rebuild_network, save_network

NUM_PLACES = 60
TENSORFLOW = TensorFlowLayout({"0": "base/conv2d", "1": "base/bn"}, ignored=("global_step",))


def tiny(layout) -> NetworkSpec:
    return NetworkSpec(
        name="tiny",
        build=lambda _: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        input=InputSpec(4, crop_fraction=1.0),
        layout=layout,
    )


def damaged(content: bytes, seed: int) -> Iterator[bytes]:
    """Yield the bytes with a bit flipped, cut, and padded, each at a seeded place."""
    rng = random.Random(seed)
    place = rng.randrange(len(content))
    flipped = bytearray(content)
    flipped[place] ^= 1 << rng.randrange(8)
    yield bytes(flipped)
    place = rng.randrange(len(content))
    yield content[:place]
    place = rng.randrange(len(content) + 1)
    yield content[:place] + rng.randbytes(rng.randint(1, 64)) + content[place:]


def require_message_or_truth(file: Path, load: Callable[[], EmbeddingNetwork], truth) -> int:
    """Damage `file` in every way; return how often that was noticed."""
    whole = file.read_bytes()
    num_noticed = 0
    for seed in range(NUM_PLACES):
        for content in damaged(whole, seed):
            file.write_bytes(content)
            try:
                found = load().backbone.state_dict()
            except DistillError:
                num_noticed += 1
            else:
                assert all(torch.equal(found[key], truth[key]) for key in truth or ())
    file.write_bytes(whole)
    load()
    return num_noticed


@pytest.fixture
def network() -> EmbeddingNetwork:
    torch.manual_seed(0)
    network = build_network(tiny(TENSORFLOW))
    nn.init.normal_(network.backbone[1].running_mean)
    return network


@pytest.fixture
def bundle(tmp_path: Path, network, tool) -> Path:
    state = network.backbone.state_dict()
    folder = tmp_path / "bundle"
    folder.mkdir()
    names = TENSORFLOW.names(list(state), ())
    variables = {
        name: state[key].permute((2, 3, 1, 0) if state[key].ndim == 4 else (0,)).numpy()
        for key, name in names.items()
    }
    variables["global_step"] = torch.tensor(5).numpy()
    tool("bundle_writer").write_bundle(folder / "model.ckpt-5", variables.items())
    return folder / "model.ckpt-5"


def loading(path: Path, layout) -> Callable[[], EmbeddingNetwork]:
    def load() -> EmbeddingNetwork:
        other = build_network(tiny(layout))
        load_weights(other, path)
        return other

    return load


def test_tensorflow_checkpoints(network, bundle: Path):
    load = loading(bundle, TENSORFLOW)
    for ending, share in (("index", 0.9), ("data-00000-of-00001", 0.75)):
        file = bundle.with_name(f"{bundle.name}.{ending}")
        noticed = require_message_or_truth(file, load, network.backbone.state_dict())
        assert noticed > 2 * NUM_PLACES * share


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_archives(network, bundle: Path, tmp_path: Path, kind: str):
    archive = Path(shutil.make_archive(str(tmp_path / "a"), kind, bundle.parent))
    load = loading(archive, TENSORFLOW)
    noticed = require_message_or_truth(archive, load, network.backbone.state_dict())
    assert noticed > 2 * NUM_PLACES * 0.9


def test_pytorch_checkpoints(network, tmp_path: Path):
    file = tmp_path / "x.pth"
    torch.save({"state_dict": network.backbone.state_dict()}, file)
    load = loading(file, PyTorchLayout())
    assert require_message_or_truth(file, load, network.backbone.state_dict()) > NUM_PLACES


def test_pytorch_s_older_format_never_raises_anything_else(network, tmp_path: Path):
    file = tmp_path / "x.pth"
    torch.save(network.backbone.state_dict(), file, _use_new_zipfile_serialization=False)
    require_message_or_truth(file, loading(file, PyTorchLayout()), None)  # it has no checksums


def test_this_toolkit_s_own_files(network, tmp_path: Path):
    file = tmp_path / "x.safetensors"
    save_network(network, file)

    def rebuild() -> EmbeddingNetwork:
        rebuilt = rebuild_network(file, lambda _: tiny(PyTorchLayout()))
        assert rebuilt.input == network.input
        return rebuilt

    for load in (loading(file, PyTorchLayout()), rebuild):
        noticed = require_message_or_truth(file, load, network.backbone.state_dict())
        assert noticed > 2 * NUM_PLACES
