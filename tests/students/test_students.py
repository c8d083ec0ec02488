import argparse
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

import students
from distill.errors import DistillError, UnknownNameError
from distill.models.networks import num_parameters
from distill.models.weights import save_network
from students.alexnet import FC6, Pool
from students.registry import STUDENTS, build_student
from teachers.load import load_trained


# Parameters of torchvision's published models less their classifiers (and, for AlexNet, less fc8).
@pytest.mark.parametrize(
    ("name", "width", "parameters"),
    [
        ("alexnet", 4096, 61_100_840 - 4096 * 1000 - 1000),
        ("resnet18", 512, 11_689_512 - 512 * 1000 - 1000),
        ("resnet50", 2048, 25_557_032 - 2048 * 1000 - 1000),
        ("mobilenetv2", 1280, 3_504_872 - 1280 * 1000 - 1000),
    ],
)
def test_published_students(name: str, width: int, parameters: int):
    student = build_student(name, image_size=64)
    assert student.embedding_dim == width
    assert num_parameters(student) == parameters
    assert student.training
    assert student(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, width)


def test_a_file_in_the_folder_is_a_student(tmp_path: Path, monkeypatch):
    (tmp_path / "linear.py").write_text(
        "from torch import nn\n"
        "from distill.models.networks import NetworkSpec\n"
        "from students.registry import register_student\n"
        "def build(size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, 7))\n"
        "register_student(NetworkSpec('linear', build, summary='one product'))\n"
    )
    monkeypatch.setattr(STUDENTS, "_entries", dict(STUDENTS._entries))
    monkeypatch.setattr(students, "__path__", [str(tmp_path)])
    runpy.run_path(
        students.__file__, init_globals={"__path__": students.__path__}, run_name="students"
    )
    assert build_student("linear", image_size=8).embedding_dim == 7
    assert all(spec.summary for _, spec in STUDENTS.items())


def test_alexnet_is_torchvisions_for_small_images():
    student = build_student("alexnet", image_size=64).backbone
    expected = models.alexnet(weights=None, dropout=0.0)
    expected.classifier = expected.classifier[:6]
    expected.load_state_dict(student.state_dict())
    for size in (64, 96):  # one pixel, four
        images = torch.rand(2, 3, size, size)
        with torch.no_grad():
            torch.testing.assert_close(student(images), expected(images))


def test_one_pixel_and_its_copies_have_the_same_gradients():
    pool, fc6 = Pool(6), FC6(4 * 36, 5).double()
    plain = nn.Linear(4 * 36, 5).double()
    plain.load_state_dict(fc6.state_dict())
    maps = torch.rand(2, 4, 1, 1, dtype=torch.float64)
    copies = nn.AdaptiveAvgPool2d(6)(maps)
    assert pool(maps).shape == (2, 4, 1, 1)
    found, expected = fc6(pool(maps).flatten(1)), plain(copies.flatten(1))
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    found.backward(upstream)
    expected.backward(upstream)
    for one, other in zip(fc6.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_alexnet_multiplies_one_pixel_once_and_all_copies_when_exported():
    network = build_student("alexnet", image_size=64).backbone
    images = torch.rand(2, 3, 64, 64)
    widths = []
    hook = network.classifier.register_forward_pre_hook(
        lambda module, inputs: widths.append(inputs[0].shape[1])
    )
    with torch.no_grad():
        found = network(images)
    hook.remove()
    assert widths == [256]
    exported = torch.export.export(network, (images,))
    taken = [node.args for node in exported.graph.nodes if "linear" in str(node.target)]
    assert [x.meta["val"].shape[1] for x, *_ in taken] == [256 * 36, 4096]
    torch.testing.assert_close(exported.module()(images), found)


def test_small_images_get_the_small_stem_and_a_map_that_is_not_one_pixel():
    small, large = (build_student("resnet18", image_size=size).backbone for size in (32, 64))
    assert small.conv1.stride == (1, 1)
    assert isinstance(small.maxpool, nn.Identity)
    assert large.conv1.stride == (2, 2)
    maps = []
    small.layer4.register_forward_hook(lambda module, args, output: maps.append(output.shape))
    small(torch.zeros(1, 3, 32, 32))
    assert maps[0][-1] == 4


def test_alexnet_refuses_images_that_its_pools_would_swallow():
    with pytest.raises(DistillError, match="alexnet needs images of at least 64 px, 32 px"):
        build_student("alexnet", image_size=32)


def test_unknown_students_get_the_nearest_match():
    with pytest.raises(UnknownNameError, match="did you mean 'mobilenetv2'"):
        build_student("mobilenet_v2")
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18'"):
        build_student("torchvision:resnet19")


def test_library_models_lose_their_classifier():
    assert build_student("timm:test_resnet", image_size=32).embedding_dim == 96
    assert build_student("torchvision:shufflenet_v2_x0_5").embedding_dim == 1024
    with pytest.raises(DistillError, match="no linear classifier"):
        build_student("torchvision:squeezenet1_0")


def test_a_trained_student_is_rebuilt_from_its_file_alone(tmp_path: Path):
    student = build_student("resnet18", image_size=32, crop_fraction=1.0)
    save_network(student, tmp_path / "student.safetensors")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for path in (tmp_path, tmp_path / "student.safetensors"):
        loaded = load_trained(path)
        assert not loaded.training
        assert loaded.input == student.input
        torch.testing.assert_close(loaded(images), student.eval()(images))


def test_loading_what_is_not_a_student(tmp_path: Path):
    with pytest.raises(DistillError, match="no run directory or weights file"):
        load_trained(tmp_path / "absent")
    with pytest.raises(DistillError, match=r"holds no student\.safetensors"):
        load_trained(tmp_path)
    torch.save(
        build_student("timm:test_resnet", image_size=32).backbone.state_dict(), tmp_path / "a.pth"
    )
    with pytest.raises(DistillError, match="name the architecture with --student"):
        load_trained(tmp_path / "a.pth")


def test_weights_to_start_from(tmp_path: Path):
    source = build_student("timm:test_resnet", image_size=32)
    torch.save(source.backbone.state_dict(), tmp_path / "a.pth")
    student = build_student("timm:test_resnet", image_size=32, weights=tmp_path / "a.pth")
    for mine, theirs in zip(student.parameters(), source.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("name", "dropped", "renamed"),
    [
        ("alexnet", {}, {"classifier.1.": "feats.0.", "classifier.4.": "feats.2."}),
        ("resnet18", {}, {}),
        ("resnet50", {"fc.weight": (8192, 2048), "fc.bias": (8192,)}, {}),
        ("mobilenetv2", {}, {}),
    ],
)
def test_compress_s_own_checkpoints(tmp_path: Path, name: str, dropped: dict, renamed: dict):
    torch.manual_seed(1)
    source = build_student(name, image_size=64).eval()
    state = {}
    for key, weight in source.backbone.state_dict().items():
        for own, other in renamed.items():
            key = key.replace(own, other)  # noqa: PLW2901
        state[f"module.{key}"] = weight
    state |= {f"module.{key}": torch.zeros(shape) for key, shape in dropped.items()}
    options = argparse.Namespace(student_arch=name, lr_decay_epochs=[90, 120], gpu=None)
    content = {"opt": options, "model": state, "optimizer": {"state": {}}, "epoch": 130}
    torch.save(content, tmp_path / "ckpt_epoch_130.pth")
    student = build_student(name, image_size=64, weights=tmp_path / "ckpt_epoch_130.pth").eval()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(student(images), source(images), rtol=0, atol=0)
