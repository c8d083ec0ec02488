"""Every format against the network that it was made from, at small sizes."""

import json
import re
from pathlib import Path

import pytest
import safetensors
import torch

import distill
from distill.errors import DistillError
from distill.exports import formats
from distill.exports.formats import (
    ExportedNetwork,
    FileFormat,
    Onnx,
    PlainSafetensors,
    Safetensors,
    TorchExport,
    files_of,
    library_model,
    require_packages,
)
from distill.models.networks import EmbeddingNetwork, build_network, wrap_module
from distill.models.weights import save_network
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


def written(kind: type[FileFormat], network: EmbeddingNetwork, folder: Path, **options: bool):
    """Write a file of a run's network; return it and what it computes."""
    weights = folder / "student.safetensors"
    save_network(network, weights)
    file = kind(network, weights, **options)
    path = folder / f"exported{kind.ending}"
    file.write(path)
    return path, file.load(path)


@pytest.mark.parametrize("kind", [Onnx, TorchExport])
def test_graphs_compute_what_the_network_computes(tmp_path: Path, kind: type[FileFormat]):
    network = student("timm:test_resnet", 32)
    path, embed = written(kind, network, tmp_path, l2_normalize=True)
    for number in (1, 2, 5):
        images = pixels(network, number)
        expected = network(images).detach()
        assert_same(embed(images), expected / expected.norm(dim=1, keepdim=True))
    with pytest.raises(Exception, match=r"(?i)dimension|shape|guard|31"):
        embed(torch.rand(2, 3, 31, 31))
    found = metadata_of(kind, path)
    assert (found["input_channels"], found["l2_normalize"]) == ("RGB", "true")
    assert (found["network"], found["image_size"]) == ("timm:test_resnet", "32")
    assert len(found["weights_sha256"]) == 64
    content = path.read_bytes()
    for folder in (distill.__file__, torch.__file__):
        assert str(Path(folder).parent).encode() not in content, "a path of this machine"


def metadata_of(kind: type[FileFormat], path: Path) -> dict[str, str]:
    if kind is TorchExport:
        files = {TorchExport.METADATA: ""}
        torch.export.load(path, extra_files=files)
        return json.loads(files[TorchExport.METADATA])
    import onnx

    model = onnx.load(path)
    names = [value.name for value in (*model.graph.input, *model.graph.output)]
    assert names == ["pixels", "embeddings"]
    return {entry.key: entry.value for entry in model.metadata_props}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Onnx, TorchExport])
@pytest.mark.parametrize(
    ("make", "name", "size"),
    [
        (student, "alexnet", 64),
        (student, "resnet50", 64),
        (student, "mobilenetv2", 32),
        (student, "torchvision:shufflenet_v2_x0_5", 32),
        (backbone, "resnet18x0.125-small", 16),
        (backbone, "resnet50x2", 64),
    ],
)
def test_networks_as_graphs(tmp_path: Path, kind, make, name: str, size: int):
    network = make(name, size)
    _, embed = written(kind, network, tmp_path)
    for number in (1, 3, 8):
        images = pixels(network, number)
        assert_same(embed(images), network(images).detach())


@pytest.mark.parametrize(
    ("make", "name", "size"),
    [
        (student, "alexnet", 64),
        (student, "resnet18", 32),
        (student, "mobilenetv2", 32),
        (student, "torchvision:shufflenet_v2_x0_5", 32),
        (student, "timm:test_resnet", 32),
        (backbone, "resnet50", 32),
    ],
)
def test_plain_weights_fit_the_library_s_model_and_the_lines_that_are_shown(
    tmp_path: Path, make, name: str, size: int
):
    network = make(name, size)
    path, embed = written(PlainSafetensors, network, tmp_path)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    images = pixels(network, 2)
    expected = network(images).detach()
    assert_same(embed(images), expected)
    scope = {"pixels": images}
    exec("\n".join(PlainSafetensors(network, path).snippet(str(path))), scope)
    assert_same(scope["embeddings"].detach(), expected)


def test_networks_that_no_library_has_get_no_plain_file():
    networks = [build_backbone(name, image_size=16) for name in ("resnet18x0.125", "resnet50x2")]
    networks += [build_network(TEACHERS.get(name), image_size=33) for name in ("pixels", "r50")]
    for network in networks:
        assert library_model(network) is None
        files = files_of("safetensors", network, Path("student.safetensors"), l2_normalize=False)
        assert [file.file_name for file in files] == ["student.safetensors"]


def test_one_s_own_module(tmp_path: Path):
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(48, 5)

        def forward(self, images):
            return self.layer(images.flatten(1))

    network = wrap_module(Own(), image_size=4).eval()
    images = pixels(network, 3)
    for kind in (Safetensors, TorchExport):
        _, embed = written(kind, network, tmp_path)
        assert_same(embed(images), network(images).detach())
    weights = tmp_path / "student.safetensors"
    scope = {"pixels": images, "module": Own()}
    exec("\n".join(Safetensors(network, weights).snippet(str(weights))), scope)
    assert torch.equal(scope["embeddings"], network(images))
    assert library_model(network) is None


def test_rows_get_length_1_and_a_row_of_zeros_stays_one():
    network = wrap_module(torch.nn.Flatten(), image_size=4)
    images = pixels(network, 2)
    images[1] = network.mean  # which normalization turns into zeros
    embeddings = ExportedNetwork(network, l2_normalize=True)(images)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.tensor([1.0, 0.0]))
    unchanged = ExportedNetwork(network, l2_normalize=False)(images)
    assert torch.equal(unchanged, network(images))


def test_missing_packages_are_named_with_what_installs_them(monkeypatch):
    monkeypatch.setattr(Onnx, "packages", ("onnx", "onnxzzz"))
    with pytest.raises(
        DistillError, match=re.escape("pip install 'distill-vision[onnx]'")
    ) as error:
        require_packages("onnx")
    assert "needs onnxzzz," in str(error.value)


def test_a_network_that_one_onnx_file_cannot_hold_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(formats, "num_parameters", lambda network: 600_000_000)
    network = wrap_module(torch.nn.Flatten(), image_size=4)
    with pytest.raises(DistillError, match=r"2\.2 GiB .* --format torch-export"):
        Onnx(network, tmp_path / "w").write(tmp_path / "a.onnx")
    assert not any(tmp_path.iterdir())
