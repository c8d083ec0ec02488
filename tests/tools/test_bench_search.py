"""The benchmark of the search runs, and what it draws can be told apart."""

import mmap
import time

import numpy as np


def test_a_line_for_every_number_of_images(tool, capsys, tmp_path):
    argv = ["--images", "600", "700", "--width", "16", "--classes", "8", "--queries", "30"]
    assert tool("bench_search").main([*argv, "--folder", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[:3] for line in lines] == [["600", "16", "30"], ["700", "16", "30"]]
    assert not list(tmp_path.iterdir())


def test_images_of_a_class_are_near_each_other(tool, tmp_path):
    rows = np.array(tool("bench_search").drawn(200, 64, 2, tmp_path / "rows", 0), np.float32)
    products = rows @ rows.T / 64
    np.fill_diagonal(products, 0)
    assert abs(np.median(products[products > 0.5]) - 1) < 0.2  # half of the variance is shared
    assert np.median(np.abs(products[products < 0.5])) < 0.3


def test_memory_that_is_held_is_seen(tool):
    def hold():
        size, private = 2**28, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        with mmap.mmap(-1, size, flags=private) as held:  # malloc may give what it kept
            held.write(b"1" * size)
            time.sleep(0.3)
            return (held[-1],)

    (last,), seconds, grown = tool("bench_search").measured(hold)
    assert last == ord("1")
    assert seconds >= 0.3
    assert 2**28 <= grown < 2**30
