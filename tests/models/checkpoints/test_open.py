"""What a path names is opened by what it is."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from distill.errors import DistillError
from distill.models.checkpoints.open import open_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def archive(tmp_path: Path, tool) -> Path:
    tool("bundle_writer").write_bundle(tmp_path / "m", [("a", np.ones(3, np.float32))])
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as file:
        for path in tmp_path.glob("m.*[xt0-9]"):
            file.write(path, f"folder/{path.name}")
    return tmp_path / "m.zip"


def test_by_content(tmp_path: Path, archive: Path):
    tensors = {"a": torch.ones(3)}
    torch.save(tensors, tmp_path / "zip-of-pytorch.zip")
    torch.save(tensors, tmp_path / "old.tar", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    archive.rename(tmp_path / "archive.bin")
    kinds = {
        "zip-of-pytorch.zip": "pytorch",
        "old.tar": "pytorch",
        "x.safetensors": "pytorch",
        "m": "tensorflow",
        "m.index": "tensorflow",
        "archive.bin": "tensorflow",
    }
    for name, kind in kinds.items():
        with open_checkpoint(tmp_path / name) as file:
            assert file.kind == kind
            assert file.path == tmp_path / name
            assert torch.equal(file.read("a"), torch.ones(3))


def test_an_archive_leaves_nothing_behind(archive: Path, cache: Path):
    with open_checkpoint(archive) as file:
        assert len(list(cache.iterdir())) == 1
        assert torch.equal(file.read("a"), torch.ones(3))
    assert list(cache.iterdir()) == []
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("notes.txt", "nothing here")
    with pytest.raises(DistillError, match=r"an archive without a TensorFlow checkpoint; give a"):
        open_checkpoint(archive)
    assert list(cache.iterdir()) == []


def test_what_cannot_be_opened(tmp_path: Path):
    with pytest.raises(DistillError, match=r"no weights file at .*absent\.pth; give a \.safet"):
        open_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(DistillError, match="holds no TensorFlow checkpoint; give"):
        open_checkpoint(tmp_path)
    (tmp_path / "x.pkl").write_text("text")
    with pytest.raises(DistillError, match="is not a whole PyTorch checkpoint"):
        open_checkpoint(tmp_path / "x.pkl")
