from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from distill.errors import DistillError
from distill.models.layout import PyTorchLayout
from distill.models.networks import InputSpec, NetworkSpec, build_network
from distill.models.weights import (
    load_weights,
    read_description,
    read_state_dict,
    save_network,
    weights_hash,
)


def small_spec(**options) -> NetworkSpec:
    return NetworkSpec(
        name="small",
        build=lambda size: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
        input=InputSpec(2, crop_fraction=1.0),
        **options,
    )


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_network(small_spec())


def equal(a, b) -> bool:
    a, b = a.backbone.state_dict(), b.backbone.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_saved_network_comes_back_with_its_description(network, tmp_path: Path):
    file = tmp_path / "student.safetensors"
    save_network(network, file)
    other = build_network(small_spec())
    assert not equal(network, other)
    load_weights(other, file)
    assert equal(network, other)
    assert read_description(file)["network"] == "small"
    assert read_description(file)["input"]["crop_fraction"] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["student.safetensors"]


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoints_are_unwrapped(network, tmp_path: Path, wrap, prefix):
    state = {prefix + k: v for k, v in network.backbone.state_dict().items()}
    torch.save(wrap(state), tmp_path / "weights.pth")
    other = build_network(small_spec())
    load_weights(other, tmp_path / "weights.pth")
    assert equal(network, other)


def test_published_prefixes_heads_and_queues_are_left_out(network, tmp_path: Path):
    state = {f"module.encoder_q.{k}": v for k, v in network.backbone.state_dict().items()}
    state |= {"module.encoder_q.fc.weight": torch.zeros(2, 4), "module.queue": torch.zeros(3)}
    torch.save({"state_dict": state}, tmp_path / "moco.pth")
    spec = small_spec(layout=PyTorchLayout("encoder_q.", ignored=("fc.", "queue")))
    other = build_network(spec)
    load_weights(other, tmp_path / "moco.pth")
    assert equal(network, other)


def test_a_mismatch_names_every_kind_and_changes_nothing(network, tmp_path: Path):
    state = {k: v for k, v in network.backbone.state_dict().items() if "num_batches" not in k}
    safetensors.torch.save_file(state, tmp_path / "old.safetensors")
    load_weights(build_network(small_spec()), tmp_path / "old.safetensors")  # which may be absent
    del state["0.bias"]
    state["0.weight"] = torch.zeros(4, 3, 3, 3)
    state["fc.weight"] = torch.zeros(2, 4)
    safetensors.torch.save_file(state, tmp_path / "other.safetensors")
    before = {k: v.clone() for k, v in network.backbone.state_dict().items()}
    with pytest.raises(DistillError) as caught:
        load_weights(network, tmp_path / "other.safetensors")
    message = str(caught.value)
    assert "1 missing (0.bias)" in message
    assert "1 unexpected (fc.weight)" in message
    assert "0.weight is (4, 3, 3, 3) in the file and (4, 3, 1, 1) in the network" in message
    assert all(torch.equal(before[k], v) for k, v in network.backbone.state_dict().items())


def test_a_weight_that_comes_twice_is_refused(network, tmp_path: Path):
    state = dict(network.backbone.state_dict())
    state["net.0.bias"] = state["0.bias"].clone()
    safetensors.torch.save_file(state, tmp_path / "twice.safetensors")
    spec = small_spec(layout=PyTorchLayout("net."))
    with pytest.raises(DistillError, match=r"unexpected \(0\.bias"):
        load_weights(build_network(spec), tmp_path / "twice.safetensors")


def test_files_that_are_missing_or_empty_of_tensors(tmp_path: Path):
    with pytest.raises(DistillError, match="no weights file at"):
        read_state_dict(tmp_path / "absent.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(DistillError, match="holds no tensors"):
        read_state_dict(tmp_path / "empty.pth")
    assert read_description(tmp_path / "absent.safetensors") is None


def changed(change) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    built.register_buffer("empty", torch.empty(0, 3))
    built.register_buffer("brief", torch.ones(2, dtype=torch.bfloat16))
    with torch.no_grad():
        change(built)
    return weights_hash(built)


@pytest.mark.parametrize(
    "change",
    [
        lambda built: built[2].weight[1].mul_(1 + 1e-7),
        lambda built: built[1].running_mean.add_(1),
        lambda built: built.register_buffer("more", torch.empty(0)),
        lambda built: built.register_buffer("empty", torch.empty(3, 0)),
        lambda built: built.register_buffer("brief", torch.ones(2, dtype=torch.float16)),
        lambda built: built[2].weight.copy_(built[2].weight.flip(0)),
    ],
)
def test_the_hash_covers_names_dtypes_shapes_and_values(change):
    assert changed(change) != changed(lambda built: None)


def test_the_hash_does_not_cover_memory_order_and_what_is_not_saved():
    plain = changed(lambda built: None)
    assert changed(lambda built: built.to(memory_format=torch.channels_last)) == plain
    assert (
        changed(lambda built: built.register_buffer("m", torch.ones(3), persistent=False)) == plain
    )


@pytest.mark.gpu
def test_the_hash_does_not_cover_the_device():
    assert changed(lambda built: built.cuda()) == changed(lambda built: None)
