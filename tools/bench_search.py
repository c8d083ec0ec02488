"""Measure nearest-neighbor search over embeddings on disk: time, memory, recall of inverted lists.

    python tools/bench_search.py --folder /tmp
    python tools/bench_search.py --folder /data --images 1281167 --width 4096 --queries 1000

Embeddings are drawn around as many centers as there are classes, half of their variance within a
class, and lie as float16 in a file that is removed afterwards (10.5 GB at the second command's
size). Queries are drawn from the same. Times are wall-clock seconds of one call; `memory` is the
largest growth of what the process itself holds (RssAnon), without pages of the file that the system
may drop; `recall` is what `InvertedLists` measures of itself.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from resident_memory import status_bytes

from distill.embeddings.search import nearest_neighbors
from distill.evaluation.inverted_lists import InvertedLists

K = 20
CHUNK = 8192


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments; print a line for every number of images and way to search."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 40_000, 80_000])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--probes", type=int, nargs="+", default=[4, 16])
    arguments = parser.parse_args(argv)
    print(f"   images  width  queries  search           seconds  memory MiB  recall at {K}")
    for num_images in arguments.images:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            rows = drawn(num_images, arguments.width, arguments.classes, Path(folder) / "rows", 0)
            queries = np.array(
                drawn(arguments.queries, arguments.width, arguments.classes, Path(folder) / "q", 1)
            )
            compare(rows, queries, arguments.probes)
    return 0


def compare(rows: np.ndarray, queries: np.ndarray, probes: Sequence[int]) -> None:
    """Print a line for the exact search and one for every number of probes."""
    where = f"{len(rows):9}  {rows.shape[1]:5}  {len(queries):7}"
    _, seconds, memory = measured(lambda: nearest_neighbors(rows, queries, k=K))
    print(f"{where}  {'exact':15}  {seconds:7.1f}  {memory / 2**20:10.0f}", flush=True)
    for number in probes:
        lists = InvertedLists(num_probes=number)
        found, seconds, memory = measured(lambda lists=lists: lists.search(rows, queries, k=K))
        what = f"IVF, {number} probes"
        print(
            f"{where}  {what:15}  {seconds:7.1f}  {memory / 2**20:10.0f}  {found[2]:.4f}",
            flush=True,
        )


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
