"""Measure nearest-neighbor search over embeddings on disk: time and memory.

    python tools/bench_search.py --folder /tmp
    python tools/bench_search.py --folder /data --images 1281167 --width 4096 --queries 1000

Embeddings are drawn around as many centers as there are classes, half of their variance within a
class, and lie as float16 in a file that is removed afterwards (10.5 GB at the second command's
size). Queries are drawn from the same. Times are wall-clock seconds of one call; `memory` is the
largest growth of what the process itself holds (RssAnon), without pages of the file that the system
may drop.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from resident_memory import status_bytes

from distill.embeddings.search import nearest_neighbors

K = 20
CHUNK = 8192


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments; print a line for every number of images."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 40_000, 80_000])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=1000)
    arguments = parser.parse_args(argv)
    print("   images  width  queries  seconds  memory MiB")
    for num_images in arguments.images:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            rows = drawn(num_images, arguments.width, arguments.classes, Path(folder) / "rows", 0)
            queries = np.array(
                drawn(arguments.queries, arguments.width, arguments.classes, Path(folder) / "q", 1)
            )
            _, seconds, memory = measured(partial(nearest_neighbors, rows, queries, k=K))
            print(
                f"{num_images:9}  {arguments.width:5}  {len(queries):7}  {seconds:7.1f}  "
                f"{memory / 2**20:10.0f}",
                flush=True,
            )
    return 0


def drawn(num_rows: int, width: int, classes: int, file: Path, seed: int) -> np.ndarray:
    """Return a memory map (num_rows, width) float16 of embeddings around common centers."""
    centers = np.random.default_rng(0).standard_normal((classes, width), dtype=np.float32)
    rng = np.random.default_rng(seed + 1)
    rows = np.memmap(file, np.float16, "w+", shape=(num_rows, width))
    for start in range(0, num_rows, CHUNK):
        labels = rng.integers(classes, size=min(CHUNK, num_rows - start))
        noise = rng.standard_normal((len(labels), width), dtype=np.float32)
        rows[start : start + len(labels)] = centers[labels] + noise
    return rows


def measured(call: Callable[[], tuple]) -> tuple[tuple, float, int]:
    """Return a call's result, its seconds, and by how many bytes the process grew at its peak."""
    before, peak, done = status_bytes("RssAnon"), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, status_bytes("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    found = call()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return found, seconds, max(0, peak - before)


if __name__ == "__main__":
    raise SystemExit(main())
