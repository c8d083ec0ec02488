"""The benchmark runs, and both of its contenders compute the same loss."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "bench_anchor_kl.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_anchor_kl", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_both_contenders_agree(bench):
    inputs = bench.make_inputs((8, 900, 24, 16))
    for contender in ("plain", "blocked"):
        found = bench.errors(contender, inputs)
        assert found["loss_error"] < 1e-5
        assert found["gradient_error"] < 1e-4


def test_tiny_mode_prints_and_writes_the_table(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "peak_memory", lambda *_: None)  # fresh processes take seconds
    file = tmp_path / "table.json"
    threads = str(bench.torch.get_num_threads())
    assert bench.main(["--tiny", "--threads", threads, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [(row["contender"], row["banks"]) for row in rows] == [
        ("plain", "fp32"),
        ("blocked", "fp32"),
        ("blocked", "bf16"),
    ]
    assert "blocked bf16" in capsys.readouterr().out
