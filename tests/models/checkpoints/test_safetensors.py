"""Safetensors files, with and without the checksum of this toolkit."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from distill.errors import DistillError
from distill.models.checkpoints.safetensors import SafetensorsFile, write_safetensors

TENSORS = {
    "conv": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
    "half": torch.randn(3).half(),
    "bf": torch.randn(5).bfloat16(),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 2),
}


def test_round_trip(tmp_path: Path):
    file = tmp_path / "x.safetensors"
    write_safetensors(file, TENSORS, {"network": "small", "sizes": [1, 2]})
    with SafetensorsFile(file) as found:
        assert found.description == {"network": "small", "sizes": [1, 2]}
        assert found.shapes == {name: tuple(t.shape) for name, t in TENSORS.items()}
        for name, tensor in TENSORS.items():
            torch.testing.assert_close(found.read(name), tensor, rtol=0, atol=0)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_foreign_files_have_neither(tmp_path: Path):
    safetensors.torch.save_file({"a": torch.ones(3)}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.description is None
    assert torch.equal(file.read("a"), torch.ones(3))


def test_every_bit_of_tensors_and_description_is_checked(tmp_path: Path):
    file = tmp_path / "x.safetensors"
    write_safetensors(file, {"a": torch.arange(4.0)}, {"mean": 0.485})
    whole = file.read_bytes()
    for place in (whole.index(b"0.485") + 2, len(whole) - 3):
        content = bytearray(whole)
        content[place] ^= 1
        file.write_bytes(content)
        with pytest.raises(DistillError, match=r"the checksum of .* is wrong: the file is damaged"):
            SafetensorsFile(file)


def test_tensors_that_change_places_are_noticed(tmp_path: Path):
    file = tmp_path / "x.safetensors"
    write_safetensors(file, {"aa": torch.arange(4.0), "bb": torch.ones(4)}, None)
    content = file.read_bytes()
    swapped = content.replace(b'"aa"', b'"??"').replace(b'"bb"', b'"aa"').replace(b'"??"', b'"bb"')
    file.write_bytes(swapped)
    with pytest.raises(DistillError, match="the checksum of"):
        SafetensorsFile(file)
    file.write_bytes(content.replace(b'"aa"', b'"zz"'))  # read last now, but the same bytes
    with pytest.raises(DistillError, match="the checksum of"):
        SafetensorsFile(file)
