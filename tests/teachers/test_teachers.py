from pathlib import Path

import pytest
import torch
from torch import nn

from distill.errors import DistillError, UnknownNameError
from distill.models.weights import save_network
from students.registry import build_student
from teachers.load import load_teacher
from teachers.registry import TEACHERS, teacher_spec


@pytest.fixture
def tiny_weights(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    file = tmp_path / "tiny.pth"
    torch.save(build_student("timm:test_resnet", image_size=32).backbone.state_dict(), file)
    return file


def test_a_teacher_is_frozen_for_good(tiny_weights: Path):
    teacher = load_teacher("timm:test_resnet", weights=tiny_weights, image_size=32)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    nn.Sequential(teacher).train()
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    teacher(torch.rand(4, 3, 32, 32))
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


def test_a_timm_teacher_brings_its_own_input():
    spec = teacher_spec("timm:tf_efficientnet_lite0")
    assert spec.input.mean == (0.5, 0.5, 0.5)
    assert spec.input.interpolation == "bicubic"
    assert spec.input.crop_fraction == 0.875
    assert spec.layout.ignored == ("classifier.",)


@pytest.mark.parametrize(
    ("name", "prefix", "others"),
    [
        ("r50-mocov2", "module.encoder_q.", ["module.encoder_k.conv1.weight", "module.queue_ptr"]),
        ("r50-swav", "module.", ["module.projection_head.0.weight", "module.prototypes.weight"]),
    ],
)
def test_published_pytorch_layouts(tmp_path: Path, name: str, prefix: str, others: list[str]):
    torch.manual_seed(2)
    source = build_student("resnet50", image_size=64).eval()
    state = {prefix + k: v for k, v in source.backbone.state_dict().items()}
    state |= {key: torch.zeros(1) for key in others}
    if name == "r50-mocov2":
        state[prefix + "fc.0.weight"] = torch.zeros(1)
    torch.save({"state_dict": state} if "moco" in name else state, tmp_path / "w.pth.tar")
    teacher = load_teacher(name, weights=tmp_path / "w.pth.tar", image_size=64)
    source.mean.copy_(teacher.mean), source.std.copy_(teacher.std)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(teacher(images), source(images))


def test_every_teacher_has_a_summary():
    assert all(spec.summary for _, spec in TEACHERS.items())


def test_pixels_are_the_image():
    teacher = load_teacher("pixels")
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(teacher(images), (images / 255).flatten(1))


def test_a_run_directory_is_a_teacher(tmp_path: Path):
    student = build_student("timm:test_resnet", image_size=32).eval()
    save_network(student, tmp_path / "student.safetensors")
    teacher = load_teacher(str(tmp_path))
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(teacher(images), student(images))
    with pytest.raises(DistillError, match="brings its own image size"):
        load_teacher(str(tmp_path), image_size=64)
    with pytest.raises(DistillError, match="brings its own weights"):
        load_teacher(str(tmp_path), weights=tmp_path / "student.safetensors")


def test_unknown_teacher():
    with pytest.raises(UnknownNameError, match="did you mean 'r50-swav'"):
        load_teacher("r50-swva")


def test_weights_that_do_not_fit(tiny_weights: Path):
    with pytest.raises(DistillError, match="does not fit r50-swav"):
        load_teacher("r50-swav", weights=tiny_weights, image_size=64)
