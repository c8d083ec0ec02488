"""The benchmark runs, and draws clusters that are as good as asked for."""

import numpy as np


def test_a_line_for_every_table(tool, capsys):
    bench = tool("bench_alignment")
    assert bench.main(
        ["--images", "300", "900", "--clusters", "5", "20", "--classes", "10", "--shares", "0.5"]
    ) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[-1].split()[:4] == ["900", "20", "10", "0.50"]
    assert all(float(seconds) >= 0 for line in lines[1:] for seconds in line.split()[4:])


def test_shares(tool):
    drawn = tool("bench_alignment").drawn
    clusters, labels = drawn(4000, (8, 8), 1.0, seed=0)
    np.testing.assert_array_equal(clusters, labels)
    clusters, labels = drawn(4000, (8, 8), 0.0, seed=0)
    assert abs(np.mean(clusters == labels) - 1 / 8) < 0.03
    assert drawn(4000, (5, 8), 1.0, seed=0)[0].max() == 4
