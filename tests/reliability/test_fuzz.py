"""Readers of files that others wrote, fed with damaged ones; `tools/fuzz.py` says what counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "fuzz.py"
READERS = (
    *("recipe", "grid", "config", "run-config", "run-metrics", "run-log", "run-robustness"),
    *(
        "comparison-run",
        "comparison-file",
        "checkpoint",
        "safetensors",
        "pytorch",
        "zip",
        "tar",
        "bundle-index",
    ),
    *("bundle-data", "image", "shard", "annotation", "voc-list", "class-map", "class-map-csv"),
    *("class-names", "frames", "label-list", "cache", "export"),
)


def fuzz(readers: tuple[str, ...], keep: Path, *flags: str, seed: int) -> str:
    """Run the tool in a process whose memory is bounded; return what it printed."""
    argv = [sys.executable, "-W", "ignore", str(TOOL), *readers, *flags]
    argv += ["--seed", str(seed), "--keep", str(keep)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout


def test_the_readers_are_those_of_the_tool(tool):
    assert set(READERS) == set(tool("fuzz").TARGETS)


@pytest.mark.parametrize("reader", READERS)
def test_a_whole_file_is_read(tool, tmp_path, monkeypatch, reader):
    """Else nothing but the first check of a reader would be tried."""
    module = tool("fuzz")
    monkeypatch.setenv("DISTILL_CACHE", "set again by the tool")
    target = module.TARGETS[reader]
    file, _ = module.prepare(target, tmp_path)
    target.read(file)


def test_some_files_for_each_reader(tmp_path):
    printed = fuzz(READERS, tmp_path, "--files", "30", seed=0)
    assert printed.count(": 30 files") == len(READERS)  # the same ones on every machine
    assert printed.count(" 0 findings") == len(READERS)


def test_a_finding_is_a_finding(tool, tmp_path, monkeypatch):
    """The tool notices exceptions, hangs, stray files and endless messages."""
    from distill.errors import DistillError

    module = tool("fuzz")
    monkeypatch.setattr(module, "SECONDS_A_FILE", 1)

    def misbehave(file: Path) -> None:
        kind = file.read_bytes()[:1]
        if kind == b"k":
            raise KeyError("x")
        if kind == b"h":
            while True:
                pass
        if kind == b"s":
            (file.parent.parent / "stray").touch()
        if kind == b"m":
            error = DistillError("x")
            error.args = ("x" * 6000,)
            raise error

    monkeypatch.setitem(
        module.TARGETS, "bad", module.Target("f", lambda _: [b"k", b"h", b"s", b"m"], misbehave)
    )
    monkeypatch.setattr(module, "changed", lambda files, rng, syntax: rng.choice(files))
    findings, _ = module.fuzz("bad", seconds=2.5, seed=0, keep=tmp_path / "kept")
    words = " ".join(findings)
    for expected in ("KeyError", "more than 1 seconds", "stray", "6000 characters"):
        assert expected in words
    assert len(list((tmp_path / "kept").iterdir())) == len(findings)


@pytest.mark.soak
@pytest.mark.parametrize("reader", READERS)
def test_ten_minutes_for_each_reader(reader, tmp_path):
    fuzz((reader,), tmp_path, "--seconds", "600", seed=1)
