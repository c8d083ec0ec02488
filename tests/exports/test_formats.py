"""Every format against the network that it was made from, at small sizes."""

import json
import re
from pathlib import Path

import pytest
import safetensors
import torch

import distill
from distill.errors import DistillError
from distill.exports import onnx_file
from distill.exports.network import ExportedNetwork
from distill.exports.onnx_file import require_packages, run_onnx, write_onnx
from distill.exports.plain_weights import library_model, run_plain, write_plain
from distill.exports.torch_export import METADATA, run_torch_export, write_torch_export
from distill.models.networks import EmbeddingNetwork, build_network
from students.registry import build_student
from teachers.registry import TEACHERS
from teachers.resnet import build_backbone


def lively(network: EmbeddingNetwork) -> EmbeddingNetwork:
    """Give BatchNorm statistics and gammas that a mistake would show in."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


def student(name: str, size: int) -> EmbeddingNetwork:
    return lively(build_student(name, image_size=size))


def backbone(name: str, size: int) -> EmbeddingNetwork:
    return lively(build_backbone(name, image_size=size))


def pixels(network: EmbeddingNetwork, number: int) -> torch.Tensor:
    side = network.input.image_size
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(number))


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert not found.requires_grad
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-5


@pytest.mark.parametrize(
    ("suffix", "write", "load", "l2_normalize"),
    [
        ("onnx", write_onnx, run_onnx, True),
        ("pt2", write_torch_export, run_torch_export, True),
        ("pt2", write_torch_export, run_torch_export, False),
    ],
)
def test_graphs_compute_what_the_network_computes(
    tmp_path: Path, suffix: str, write, load, l2_normalize: bool
):
    network = student("timm:test_resnet", 32)
    path = tmp_path / f"student.{suffix}"
    write(ExportedNetwork(network, l2_normalize=l2_normalize), path, {"color": "RGB"})
    embed = load(path)
    for number in (1, 2, 5):
        images = pixels(network, number)
        expected = network(images).detach()
        if l2_normalize:
            expected = expected / expected.norm(dim=1, keepdim=True)
        assert_same(embed(images), expected)
    with pytest.raises(Exception, match=r"(?i)dimension|shape|guard|31"):
        embed(torch.rand(2, 3, 31, 31))
    assert metadata_of(path) == {"color": "RGB"}
    content = path.read_bytes()
    for folder in (distill.__file__, torch.__file__):
        assert str(Path(folder).parent).encode() not in content, "a path of this machine"


def metadata_of(path: Path) -> dict[str, str]:
    if path.suffix == ".pt2":
        files = {METADATA: ""}
        torch.export.load(path, extra_files=files)
        return json.loads(files[METADATA])
    import onnx

    model = onnx.load(path)
    names = [value.name for value in (*model.graph.input, *model.graph.output)]
    assert names == ["pixels", "embeddings"]
    return {entry.key: entry.value for entry in model.metadata_props}


@pytest.mark.parametrize(
    ("make", "name", "size"),
    [
        (student, "alexnet", 64),
        (backbone, "resnet18x0.125-small", 16),
    ],
)
def test_networks_as_torch_export(tmp_path: Path, make, name: str, size: int):
    network = make(name, size)
    write_torch_export(ExportedNetwork(network, l2_normalize=False), tmp_path / "a.pt2", {})
    embed = run_torch_export(tmp_path / "a.pt2")
    for number in (1, 3):
        images = pixels(network, number)
        assert_same(embed(images), network(images).detach())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "name", "size"),
    [
        (student, "alexnet", 64),
        (student, "resnet18", 32),
        (student, "resnet50", 64),
        (student, "mobilenetv2", 32),
        (student, "torchvision:shufflenet_v2_x0_5", 32),
        (backbone, "resnet18x0.125-small", 16),
        (backbone, "resnet50x2", 64),
    ],
)
def test_networks_as_graphs(tmp_path: Path, make, name: str, size: int):
    network = make(name, size)
    exported = ExportedNetwork(network, l2_normalize=False)
    write_onnx(exported, tmp_path / "a.onnx", {})
    write_torch_export(exported, tmp_path / "a.pt2", {})
    for embed in (run_onnx(tmp_path / "a.onnx"), run_torch_export(tmp_path / "a.pt2")):
        for number in (1, 3, 8):
            images = pixels(network, number)
            assert_same(embed(images), network(images).detach())


@pytest.mark.parametrize(
    ("make", "name", "size"),
    [
        (student, "alexnet", 64),
        (student, "resnet18", 32),
        (student, "resnet50", 32),
        (student, "mobilenetv2", 32),
        (student, "torchvision:shufflenet_v2_x0_5", 32),
        (student, "timm:test_resnet", 32),
        (backbone, "resnet18-small", 16),
        (backbone, "resnet50", 32),
    ],
)
def test_plain_weights_fit_the_library_s_model_and_the_code_that_is_shown(
    tmp_path: Path, make, name: str, size: int
):
    network = make(name, size)
    path = tmp_path / "plain.safetensors"
    write_plain(network, path)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    model = library_model(network)
    assert model is not None
    images = pixels(network, 2)
    expected = network(images).detach()
    assert_same(run_plain(path, model, network.input)(images), expected)
    import torchvision

    names = {"torch": torch, "torchvision": torchvision}
    if model.library == "timm":
        import timm

        names = {"timm": timm}
    exec("\n".join(model.code), names)
    shown = names["model"].eval()
    shown.load_state_dict(safetensors.torch.load_file(path), strict=True)
    mean, std = torch.tensor(network.input.mean), torch.tensor(network.input.std)
    normalized = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert_same(shown(normalized).detach(), expected)


@pytest.mark.parametrize("name", ["resnet18x0.125-small", "resnet50x2"])
def test_widths_that_no_library_has_get_no_plain_file(name: str):
    assert library_model(build_backbone(name, image_size=16)) is None


@pytest.mark.parametrize("name", ["pixels", "r50"])
def test_teachers_get_no_plain_file(name: str):
    assert library_model(build_network(TEACHERS.get(name), image_size=33)) is None


def test_rows_get_length_1_and_a_row_of_zeros_stays_one():
    class Flat(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)

    network = student("timm:test_resnet", 32)
    network.backbone = Flat()
    images = pixels(network, 2)
    images[1] = network.mean  # which normalization turns into zeros
    embeddings = ExportedNetwork(network, l2_normalize=True)(images)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.tensor([1.0, 0.0]))
    unchanged = ExportedNetwork(network, l2_normalize=False)(images)
    assert torch.equal(unchanged, network(images))
    assert unchanged[0].norm() > 2


def test_missing_packages_are_named_with_what_installs_them(monkeypatch):
    monkeypatch.setattr(onnx_file, "PACKAGES", ("onnx", "onnxzzz"))
    with pytest.raises(DistillError, match=re.escape("pip install 'distill-vision[onnx]'")) as told:
        require_packages()
    assert "onnxzzz" in str(told.value)
    assert "needs onnxzzz," in str(told.value)


def test_a_network_that_one_onnx_file_cannot_hold_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(onnx_file, "num_parameters", lambda network: 600_000_000)
    network = ExportedNetwork(student("timm:test_resnet", 32), l2_normalize=False)
    with pytest.raises(DistillError, match=r"2\.2 GiB .* --format torch-export"):
        write_onnx(network, tmp_path / "a.onnx", {})
    assert not any(tmp_path.iterdir())
