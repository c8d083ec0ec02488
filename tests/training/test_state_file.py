"""State files: what goes in comes out, and what is damaged is found, wherever it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from distill.errors import DistillError
from distill.training.checkpoints import FORMAT, read_description, read_state, write_state

STATE = {
    "weights": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 4),
    "nested": {"list": [1, 2.5, "x", None, True, {"deep": torch.zeros(1)}], "nothing": {}},
    0: {1: torch.ones(2)},  # an optimizer's state has numbers as keys
    "like.a.path": torch.ones(1),
    "like": {"a": {"path": torch.zeros(1)}},
}


def assert_equal(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


def test_what_goes_in_comes_out(tmp_path: Path):
    write_state(tmp_path / "a", STATE, {"said": [1, {"x": None}]})
    description, state = read_state(tmp_path / "a")
    assert description == {"format": FORMAT, "said": [1, {"x": None}]}
    assert read_description(tmp_path / "a")["said"] == [1, {"x": None}]
    assert_equal(state, STATE)


def test_numbers_keep_every_bit(tmp_path: Path):
    values = [0.1, 1 / 3, 1e-300, 2**53 + 1, float("inf")]
    write_state(tmp_path / "a", {"values": values}, {})
    assert read_state(tmp_path / "a")[1]["values"] == values


def test_tuples_come_back_as_lists_and_other_things_are_refused(tmp_path: Path):
    write_state(tmp_path / "a", {"betas": (0.9, 0.999)}, {})
    assert read_state(tmp_path / "a")[1] == {"betas": [0.9, 0.999]}
    with pytest.raises(TypeError, match=r"state\.when is a set, which no checkpoint can hold"):
        write_state(tmp_path / "b", {"when": {1}}, {})
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "pad", "zero"])
def test_damage_is_found_wherever_it_is(tmp_path: Path, damage: str):
    file, generator = tmp_path / "a", np.random.default_rng(0)
    write_state(file, STATE, {"said": 1})
    whole = file.read_bytes()
    for place in generator.integers(0, len(whole), 60):
        content = bytearray(whole)
        if damage == "flip":
            content[place] ^= 1 << int(generator.integers(8))
        elif damage == "cut":
            del content[place:]
        elif damage == "pad":
            content += bytes(content[:place]) or b"x"
        else:
            content[place : place + 16] = bytes(len(content[place : place + 16]))
        if bytes(content) == whole:
            continue
        file.write_bytes(content)
        try:
            description, state = read_state(file)
        except DistillError:
            continue
        # Only what means the same may pass, such as other blanks in the header.
        assert description == {"format": FORMAT, "said": 1}
        assert_equal(state, STATE)


@pytest.mark.parametrize(
    "structure",
    [
        {"tensor": "not there"},
        {"tensor": 3},
        {"dict": [["key"]]},
        {"dict": 4},
        {"list": None},
        {"tensor": "a", "list": []},
        {"pickle": "x"},
        {},
    ],
)
def test_a_structure_that_is_none_is_damage(tmp_path: Path, structure):
    from distill.models.checkpoints.safetensors import write_safetensors

    write_safetensors(
        tmp_path / "a",
        {"a": torch.zeros(1)},
        {"format": FORMAT, "state": {"dict": [["x", structure]]}},
    )
    with pytest.raises(DistillError, match="damaged"):
        read_state(tmp_path / "a")


@pytest.mark.parametrize("description", [None, [], {"format": 1}, {"format": "2"}])
def test_another_format_is_named(tmp_path: Path, description):
    metadata = None if description is None else {"distill": json.dumps(description)}
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a", metadata=metadata)
    with pytest.raises(DistillError, match=f"and this version of distill reads format {FORMAT}"):
        read_state(tmp_path / "a")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DistillError, match="a is missing"):
        read_state(tmp_path / "a")


def test_tensors_are_mapped_not_read(tmp_path: Path):
    import psutil

    process, big = psutil.Process(), torch.ones(1 << 24)  # 64 MiB
    write_state(tmp_path / "a", {"big": big}, {})
    before = process.memory_info().rss
    state = read_state(tmp_path / "a", verify=False)[1]
    assert process.memory_info().rss - before < 16 * 2**20
    assert torch.equal(state["big"], big)
