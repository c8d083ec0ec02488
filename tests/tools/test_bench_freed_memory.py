"""The benchmark of kept memory runs, both ways."""

import sys

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_a_line_for_every_student(tool, capsys):
    argv = ["--students", "resnet18", "--image-size", "32", "--batch-size", "2"]
    argv += ["--steps", "1", "--repeat", "1"]
    assert tool("bench_freed_memory").main(argv) == 0
    (line,) = capsys.readouterr().out.splitlines()[1:]
    name, back, kept, ratio, *held = line.split()
    assert name == "resnet18"
    assert abs(float(ratio) - float(back) / float(kept)) < 0.05 * float(ratio) + 0.01
    assert all(float(memory) > 100 for memory in held)
