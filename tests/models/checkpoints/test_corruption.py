"""Files that are flipped, cut or padded anywhere are refused in a sentence, or read correctly.

Every kind of file that carries a checksum, at seeded places: never another exception, never other
numbers than were written.
"""

from __future__ import annotations

import random
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.errors import DistillError
from distill.models.layout import PyTorchLayout, TensorFlowLayout
from distill.models.networks import EmbeddingNetwork, InputSpec, NetworkSpec, build_network
from distill.models.weights import load_weights, rebuild_network, save_network

NUM_PLACES = 100
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


def loaded_or_message(load: Callable[[], EmbeddingNetwork]) -> dict[str, torch.Tensor] | str:
    try:
        return load().backbone.state_dict()
    except DistillError as error:
        return str(error)


def require_message_or_truth(file: Path, load: Callable[[], EmbeddingNetwork], truth) -> int:
    """Damage `file` in every way; return how often that was noticed."""
    whole = file.read_bytes()
    num_noticed = 0
    for seed in range(NUM_PLACES):
        for content in damaged(whole, seed):
            file.write_bytes(content)
            found = loaded_or_message(load)
            if isinstance(found, str):
                assert "\n" not in found
                num_noticed += 1
            else:
                assert all(torch.equal(found[key], truth[key]) for key in truth)
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


@pytest.mark.parametrize("ending", ["index", "data-00000-of-00001"])
def test_tensorflow_checkpoints(network, bundle: Path, ending: str):
    file = bundle.with_name(f"{bundle.name}.{ending}")
    load = loading(bundle, TENSORFLOW)
    noticed = require_message_or_truth(file, load, network.backbone.state_dict())
    assert noticed > 2 * NUM_PLACES * (0.9 if ending == "index" else 0.75)


@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz"])
def test_archives(network, bundle: Path, tmp_path: Path, kind: str):
    archive = tmp_path / kind
    files = sorted(bundle.parent.iterdir())
    if kind == "a.zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in files:
                packed.write(file, f"m/{file.name}")
    else:
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(bundle.parent, "m")
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
    state = network.backbone.state_dict()
    torch.save(state, file, _use_new_zipfile_serialization=False)
    whole, load = file.read_bytes(), loading(file, PyTorchLayout())
    for seed in range(NUM_PLACES):
        for content in damaged(whole, seed):
            file.write_bytes(content)
            found = loaded_or_message(load)  # it has no checksums: numbers may be wrong
            assert not isinstance(found, str) or "\n" not in found


def test_this_toolkit_s_own_files(network, tmp_path: Path):
    file = tmp_path / "x.safetensors"
    save_network(network, file)
    for load in (
        loading(file, PyTorchLayout()),
        lambda: rebuild_network(file, lambda _: tiny(PyTorchLayout())),
    ):
        noticed = require_message_or_truth(file, load, network.backbone.state_dict())
        assert noticed > 2 * NUM_PLACES


def test_a_description_is_never_half_believed(network, tmp_path: Path):
    file = tmp_path / "x.safetensors"
    save_network(network, file)
    whole = file.read_bytes()
    for seed in range(NUM_PLACES):
        for content in damaged(whole, seed):
            file.write_bytes(content)
            try:
                found = rebuild_network(file, lambda _: tiny(PyTorchLayout()))
            except DistillError:
                continue
            assert found.input == network.input
