"""Kernels compile for GPUs that are not here, and what must not be shipped is found."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "aot_check.py"
# A tile far too large for the registers of 4 warps.
SPILLS = """
import sys
sys.path.insert(0, {folder!r})
import aot_check
from distill.kernels.fused.plan import FirstTile
(program,) = aot_check.first(FirstTile(128, 128, 64, 64, 4, 3), "bf16", "quick")
compiled = aot_check.compiled(program, 90)
print(compiled.problems())
"""


@pytest.fixture
def aot_check(monkeypatch):
    """The tool as a module."""
    monkeypatch.syspath_prepend(str(TOOL.parent))
    import aot_check as tool

    yield tool
    del sys.modules["aot_check"]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program without the interpreter, which the tests' own process uses."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.slow
def test_one_configuration_of_each_pass_per_target(tmp_path):
    file = tmp_path / "table.json"
    result = run(str(TOOL), "--forms", "quick", "--json", str(file))
    assert result.returncode == 0, result.stderr
    rows = json.loads(file.read_text())
    assert {row["target"] for row in rows} == {80, 90, 100}
    for row in rows:
        assert row["stack"] == row["local"] == 0
        assert row["name"] == "merge" or row["mma"] > 0
    assert len(rows) == len(result.stdout.splitlines()) - 1 == 12


def test_a_spilling_tile_is_found():
    result = run("-c", SPILLS.format(folder=str(TOOL.parent)))
    assert "spills" in result.stdout, result.stderr


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, []),
        ({"stack": 8}, ["spills: 8 bytes of stack"]),
        ({"local": 2}, ["2 local instructions"]),
        ({"shared": 240_000}, ["240000 bytes of shared memory, 232448 allowed"]),
        ({"mma": 0}, ["no HGMMA instruction"]),
        ({"mma": 0, "dtype": "fp32"}, []),
    ],
)
def test_what_must_not_be_shipped(aot_check, changed, words):
    usual = aot_check.Compiled(90, "first", "bf16", 200, 100_000, 0, 0, 8, 8)
    problems = dataclasses.replace(usual, **changed).problems()
    assert len(problems) == len(words)
    assert all(word in problem for word, problem in zip(words, problems, strict=True))


def test_resident_warps(aot_check):
    assert aot_check.resident_warps(90, 255, 144 << 10, 8) == 8  # registers and shared memory
    assert aot_check.resident_warps(90, 128, 32 << 10, 8) == 16  # registers
    assert aot_check.resident_warps(80, 32, 32 << 10, 8) == 32  # shared memory: four of 33 KiB
    assert aot_check.resident_warps(90, 24, 0, 4) == 64  # at most 64
