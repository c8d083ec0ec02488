"""`distill convert` and `distill list teachers`."""

from pathlib import Path

import pytest
import torch

from distill.cli.main import run
from distill.errors import DistillError
from teachers.load import load_teacher
from teachers.registry import TEACHERS


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A checkpoint of r50-swav in its published layout."""
    torch.manual_seed(3)
    weights = TEACHERS.get("r50-swav").build(64).state_dict()
    torch.save({f"module.{k}": v for k, v in weights.items()}, tmp_path / "swav.pth.tar")
    return tmp_path / "swav.pth.tar"


def test_a_converted_file_needs_nothing_else(original: Path, tmp_path: Path, capsys):
    target = tmp_path / "swav.safetensors"
    argv = ["convert", "--teacher", "r50-swav", "--teacher-weights", str(original)]
    assert run([*argv, "--to", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "23508032" in printed
    assert str(target) in printed
    expected = load_teacher("r50-swav", weights=original, image_size=64)
    original.unlink()
    images = torch.rand(1, 3, 64, 64)
    for found in (
        load_teacher(str(target), image_size=64),
        load_teacher("r50-swav", weights=target, image_size=64),
    ):
        assert found.input == expected.input
        assert found.spec.name == "r50-swav"
        assert not any(parameter.requires_grad for parameter in found.parameters())
        assert torch.equal(found(images), expected(images))
    with pytest.raises(DistillError, match=r"holds r50-swav, not r50; use --teacher \S+"):
        load_teacher("simclr-r50", weights=target)
    with pytest.raises(DistillError, match="brings its own weights"):
        load_teacher(str(target), weights=target)


def test_nothing_is_overwritten(tmp_path: Path, capsys):
    target = tmp_path / "digits.safetensors"
    target.write_text("mine")
    assert run(["convert", "--teacher", "digits-cbyol", "--to", str(target)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert target.read_text() == "mine"


def test_teachers_are_listed_with_what_is_known(capsys):
    assert run(["list", "teachers"]) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.strip().startswith("r50x4 "))
    for known in ("SimCLR v1", "ResNet-50 4x", "8,192", "76.6 %", "Apache-2.0", "2002.05709"):
        assert known in line
    assert "r50-c-simclr: the authors' link for C-SimCLR leads to the SimCLR checkpoint" in printed
    assert "reported unreachable" in printed
    assert "simclr-r50x4" not in printed
