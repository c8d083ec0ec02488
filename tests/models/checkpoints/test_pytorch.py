"""PyTorch checkpoints: tensors and plain values come in, code does not."""

import argparse
import collections
import os
from pathlib import Path

import pytest
import torch

from distill.errors import DistillError
from distill.models.checkpoints.pytorch import PyTorchFile, is_zip_of_pytorch


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def state(**extra):
    return {
        "module.a.weight": torch.arange(6.0).view(2, 3),
        "module.a.bias": torch.ones(2),
        **extra,
    }


@pytest.mark.parametrize("is_legacy", [False, True])
def test_options_in_a_namespace_are_allowed(tmp_path: Path, is_legacy: bool):
    options = argparse.Namespace(lr=0.1, milestones=[90, 120], arch="alexnet", path=None)
    content = {"opt": options, "model": state(), "optimizer": {"state": {}}, "epoch": 130}
    file = tmp_path / "ckpt_epoch_130.pth"
    torch.save(content, file, _use_new_zipfile_serialization=not is_legacy)
    assert is_zip_of_pytorch(file) != is_legacy
    with PyTorchFile(file) as found:
        assert found.kind == "pytorch"
        assert found.shapes == {"a.weight": (2, 3), "a.bias": (2,)}
        torch.testing.assert_close(found.read("a.weight"), torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Evil(), r"posix\.mkdir|nt\.mkdir"),
        (argparse.Namespace(evil=Evil()), r"posix\.mkdir|nt\.mkdir"),
        (argparse.Namespace(path=Path("x")), r"pathlib\.\w*Path"),
        (collections.deque([1]), r"collections\.deque"),
    ],
)
def test_anything_else_is_refused_by_name(tmp_path: Path, monkeypatch, is_legacy, value, name):
    monkeypatch.chdir(tmp_path)
    torch.save(
        {"model": state(), "opt": value}, "x.pth", _use_new_zipfile_serialization=not is_legacy
    )
    with pytest.raises(DistillError, match=rf"running code from it \(it asks for ({name})\)"):
        PyTorchFile(Path("x.pth"))
    assert not Path("executed").exists()


def test_a_namespace_does_not_stay_allowed(tmp_path: Path):
    torch.save({"opt": argparse.Namespace(a=1), "model": state()}, tmp_path / "x.pth")
    PyTorchFile(tmp_path / "x.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_the_checksums_that_pytorch_ignores_are_checked(tmp_path: Path):
    file = tmp_path / "x.pth"
    torch.save({"w": torch.arange(64.0)}, file)
    content = bytearray(file.read_bytes())
    place = content.index(torch.arange(64.0).numpy().tobytes()) + 17
    content[place] ^= 4
    file.write_bytes(content)
    assert not torch.equal(torch.load(file)["w"], torch.arange(64.0))  # PyTorch does not notice
    with pytest.raises(DistillError, match="not a whole PyTorch checkpoint"):
        PyTorchFile(file)


def test_what_holds_no_tensors(tmp_path: Path):
    for content in ({"epoch": 3}, [1, 2], 7, {"model": {}}):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(DistillError, match="holds no tensors"):
            PyTorchFile(tmp_path / "x.pth")
