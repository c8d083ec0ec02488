"""Published teachers: what the original programs computed, and what their authors state."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.errors import DistillError, UnknownNameError
from distill.models.layout import TensorFlowLayout
from distill.models.networks import InputSpec, NetworkSpec, build_network
from distill.models.weights import load_weights
from teachers.registry import TEACHERS, teacher_spec
from teachers.resnet import SamePool, build_resnet
from teachers.tensorflow_names import compressive_layout, projection_layout, simclr_layout

# Name, layout, head, answer, images: the features that TensorFlow computed.
ORACLES = [
    ("simclr_tf1", simclr_layout(50), None, "features", "images"),
    ("simclr_tf1", simclr_layout(50), None, "features_odd", "images_odd"),
    ("csimclr_tf2", compressive_layout(50), None, "features", "images"),
    ("csimclr_tf2", compressive_layout(50), None, "features_odd", "images_odd"),
    ("csimclr_tf2", projection_layout(50), (64, 32), "projection", "images"),
    ("cbyol_tf2", compressive_layout(50), None, "features", "images"),
    ("cbyol_tf2", compressive_layout(50), None, "features_odd", "images_odd"),
    ("cbyol_tf2", projection_layout(50), (64, 32), "projection", "images"),
    ("cbyol_tf2", compressive_layout(50, part="target_resnet"), None, "target_features", "images"),
]


def eighth(layout: TensorFlowLayout, *, side: int, head=None, depth: int = 50, pool: str = "same"):
    """Describe a published network at an eighth of its width, as the oracles are."""
    build = partial(build_resnet, depth=depth, width=0.125, pool=pool, head_dims=head)
    seen = InputSpec(image_size=side, mean=(0.0,) * 3, std=(1.0,) * 3)
    return NetworkSpec(name="an eighth", build=build, input=seen, layout=layout)


def relative_error(found: torch.Tensor, expected: np.ndarray) -> float:
    difference = np.linalg.norm(found.numpy() - expected, axis=1)
    return float((difference / np.linalg.norm(expected, axis=1)).max())


@pytest.mark.parametrize(("name", "layout", "head", "answer", "given"), ORACLES)
@torch.no_grad()
def test_embeddings_are_those_of_the_original_programs(oracles, name, layout, head, answer, given):
    expected = np.load(oracles / name / "expected.npz")
    images = torch.from_numpy(expected[given]).permute(0, 3, 1, 2)
    network = build_network(eighth(layout, side=images.shape[-1], head=head)).eval()
    load_weights(network, oracles / name)
    assert relative_error(network(images), expected[answer]) < 1e-5


@torch.no_grad()
def test_symmetric_pooling_would_be_wrong(oracles: Path):
    expected = np.load(oracles / "simclr_tf1" / "expected.npz")
    images = torch.from_numpy(expected["images"]).permute(0, 3, 1, 2)
    spec = eighth(simclr_layout(50), side=images.shape[-1], pool="symmetric")
    network = build_network(spec).eval()
    load_weights(network, oracles / "simclr_tf1")
    assert relative_error(network(images), expected["features"]) > 1e-2


@pytest.mark.parametrize("side", range(3, 14))
def test_same_padding_by_its_definition(side: int):
    maps = torch.randn(2, 3, side, side + 1)
    padded = maps
    for dimension, size in ((2, side), (3, side + 1)):
        total = max((-(-size // 2) - 1) * 2 + 3 - size, 0)
        before, after = total // 2, total - total // 2
        amounts = [before, after, 0, 0] if dimension == 3 else [0, 0, before, after]
        padded = torch.nn.functional.pad(padded, amounts, value=-torch.inf)
    expected = torch.nn.functional.max_pool2d(padded, 3, stride=2)
    assert expected.shape[2] == -(-side // 2)
    torch.testing.assert_close(SamePool()(maps), expected)


# Millions of parameters without classifier, as the authors' tables or the papers state them.
MILLIONS = {
    "r50": 23.5,
    "r50x4": 375.4,
    "r101-c-byol": 42.5,
    "r152-c-byol": 58.1,
    "r50w5-swav": 586.4,
}


@pytest.mark.parametrize(("name", "millions"), MILLIONS.items())
def test_sizes(name: str, millions: float):
    spec = TEACHERS.get(name)
    with torch.device("meta"):
        network = spec.build(224)
        embedding = network(torch.empty(1, 3, 224, 224))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6, 1) == pytest.approx(millions, abs=0.11)
    assert embedding.shape == (1, spec.publication.embedding_dim)


PARTS = ("r50-c-byol", "r50-c-byol:projection", "r50-c-byol:target")


@pytest.mark.parametrize("name", ["r50", "r101-c-byol", "r152-c-byol", *PARTS])
def test_every_weight_has_one_source(name: str):
    with torch.device("meta"):
        keys = [k for k in TEACHERS.get(name).build(64).state_dict() if "tracked" not in k]
    names = TEACHERS.get(name).layout.names(keys, ())
    assert sorted(names) == sorted(keys)
    assert len(set(names.values())) == len(keys)


def test_what_is_not_the_network_is_listed_by_name(oracles: Path, tmp_path: Path, tool):
    from distill.models.checkpoints.open import open_checkpoint

    with open_checkpoint(oracles / "simclr_tf1") as file:
        variables = {name: file.read(name).numpy() for name in file.shapes}
    network = build_network(eighth(simclr_layout(50), side=64))
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    write = tool("bundle_writer").write_bundle

    slots = {f"{name}/Momentum": value for name, value in variables.items()}
    averages = {f"ema_model/{name}": value for name, value in variables.items()}
    heads = {"head_contrastive/nl_0/dense/kernel": np.zeros((2, 2), np.float32)}
    write(tmp_path / "v2", {**variables, **slots, **averages, **heads}.items())
    load_weights(network, tmp_path / "v2")
    once = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    load_weights(network, oracles / "simclr_tf1")
    assert all(torch.equal(once[k], v) for k, v in network.backbone.state_dict().items())
    assert not all(torch.equal(before[k], v) for k, v in once.items())

    variables["base_model/conv2d_53/kernel"] = np.zeros((1, 1, 8, 8), np.float32)
    kernel = variables.pop("base_model/conv2d_7/kernel")
    variables["base_model/conv2d_8/kernel"] = kernel
    write(tmp_path / "odd", variables.items())
    with pytest.raises(DistillError) as caught:
        load_weights(network, tmp_path / "odd")
    message = str(caught.value)
    assert "does not fit an eighth: 1 missing (base_model/conv2d_7/kernel)" in message
    assert "1 unexpected (base_model/conv2d_53/kernel)" in message
    assert "base_model/conv2d_8/kernel is (1, 1, 8, 32) in the file and (1, 1, 32, 8)" in message


def test_an_unknown_part_of_the_network_is_not_ignored(oracles: Path, tmp_path: Path, tool):
    from distill.models.checkpoints.open import open_checkpoint

    with open_checkpoint(oracles / "cbyol_tf2") as file:
        variables = {name: file.read(name).numpy() for name in file.shapes}
    for part in ("resnet", "target_resnet"):
        extra = f"model/_{part}/block_groups/4/kernel/.ATTRIBUTES/VARIABLE_VALUE"
        odd = {**variables, extra: np.zeros(1, np.float32)}
        tool("bundle_writer").write_bundle(tmp_path / part, odd.items())
        network = build_network(eighth(compressive_layout(50, part=part), side=64))
        with pytest.raises(DistillError, match=rf"1 unexpected \({extra}\)"):
            load_weights(network, tmp_path / part)


def test_the_other_depth_is_another_network(oracles: Path):
    network = build_network(eighth(simclr_layout(101), side=64, depth=101))
    with pytest.raises(DistillError, match=r"missing \(.* more\)"):
        load_weights(network, oracles / "simclr_tf1")


def test_every_entry_is_described_in_full():
    published = [spec for _, spec in TEACHERS.items() if spec.publication is not None]
    assert len(published) == 15
    for spec in published:
        about = spec.publication
        assert spec.summary
        assert 0.6 < about.linear_accuracy < 0.8
        assert about.license in ("Apache-2.0", "CC-BY-NC-4.0")
        assert about.source.url.startswith("https://")
        with torch.device("meta"):
            pool = spec.build(224).maxpool
        is_tensorflow = spec.layout.kind == "tensorflow"
        assert isinstance(pool, SamePool) == is_tensorflow
        assert (spec.input.interpolation == "bicubic") == is_tensorflow
    inputs = {name: teacher_spec(name).input for name in ("r50x4", "r50-c-byol", "r50-swav")}
    assert (inputs["r50x4"].mean, inputs["r50x4"].std) == ((0.0,) * 3, (1.0,) * 3)  # as they are
    assert inputs["r50-c-byol"].mean == (0.485, 0.456, 0.406)
    assert inputs["r50-swav"].std == (0.228, 0.224, 0.225)


def test_other_names():
    assert teacher_spec("simclr-r50x4") is teacher_spec("r50x4")
    assert teacher_spec("r50-c-byol:target").layout != teacher_spec("r50-c-byol").layout
    assert "r50-c-simclr:target" not in TEACHERS
    with pytest.raises(UnknownNameError, match="did you mean 'simclr-r50x4'") as caught:
        teacher_spec("simclr-r50x4x")
    known = str(caught.value).partition("known: ")[2]
    assert "r50x4" in known
    assert "simclr-r50x4" not in known
    assert ":target" not in known
