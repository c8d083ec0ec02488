"""The benchmark runs, compares what fits into memory, and says what it left out."""

import json
from functools import partial

import pytest


@pytest.fixture
def bench(tool, monkeypatch):
    module = tool("bench_anchor_kl")
    # Fresh processes take seconds each; `resident_memory` has a test of its own.
    monkeypatch.setattr(module, "in_fresh_process", lambda function, *rest: function(*rest))
    monkeypatch.setattr(module, "peak_growth", lambda call: 2**20)
    return module


def run(bench, tmp_path, *arguments: str) -> dict:
    file = tmp_path / "table.json"
    threads = str(bench.torch.get_num_threads())
    assert bench.main(["--tiny", "--threads", threads, "--json", str(file), *arguments]) == 0
    return json.loads(file.read_text())


def test_tiny_mode_prints_and_writes_the_table(bench, tmp_path, capsys):
    found = run(bench, tmp_path)
    assert [(row["K"], row["contender"], row["banks"]) for row in found["rows"]] == [
        (2000, "plain", "fp32"),
        (2000, "blocked", "fp32"),
        (2000, "blocked", "bf16"),
    ]
    for row in found["rows"]:
        assert row["loss_error"] < (1e-2 if row["banks"] == "bf16" else 1e-5)
        assert 0 < row["share_of_best"] <= row["share_of_mm"]
    printed = capsys.readouterr().out
    assert "blocked bf16" in printed
    assert "bf16 banks run at" in printed


def test_every_number_of_anchors_has_a_table(bench, tmp_path, capsys):
    found = run(bench, tmp_path, "--anchors", "300", "700", "--dtypes", "fp32")
    assert [row["K"] for row in found["rows"]] == [300, 300, 700, 700]
    assert capsys.readouterr().out.count("of best") == 2


def test_what_does_not_fit_is_left_out(bench, tmp_path, capsys, monkeypatch):
    shape, dtypes = (16, 2000, 64, 32), ["fp32", "bf16"]
    needed = {name: bench.needed_bytes((name, "fp32"), shape, dtypes) for name in bench.NAMES}
    free = (needed["plain"] + needed["blocked"]) // 2
    memory = bench.psutil.virtual_memory()._replace(available=free)
    monkeypatch.setattr(bench.psutil, "virtual_memory", lambda: memory)
    rows = run(bench, tmp_path, "--anchors", "2000", "9000000")["rows"]
    assert [row["contender"] for row in rows] == ["blocked", "blocked"]
    assert rows[0]["speedup"] is None
    assert rows[1]["speed_over_fp32"] > 0
    assert capsys.readouterr().out.count("plain fp32 left out, it needs about") == 2


def test_peaks_are_measured_in_a_fresh_process(tool):
    memory = tool("resident_memory")
    if not memory.can_measure():
        pytest.skip("the system does not let a process reset its peak")
    grown = memory.in_fresh_process(memory.peak_growth, partial(bytearray, 64 << 20))
    assert 60 << 20 < grown < 80 << 20
