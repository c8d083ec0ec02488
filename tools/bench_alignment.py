"""Measure cluster alignment after k-means: contingency, matching, NMI, ARI and purity.

    python tools/bench_alignment.py
    python tools/bench_alignment.py --images 1281167 --clusters 1000 4000 --shares 0 0.3 1

Every line is one table of clusters and classes. A share of the images are in the cluster of their
class, the others anywhere: 0 is chance, 1 perfect clusters. Times are those of the fastest of some
runs, in seconds, on one thread. `all` is what a user waits for after k-means and assignment:
`align` and its notes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from distill.evaluation.clusters import align, contingency, match_clusters

NUM_RUNS = 3
IMAGENET = 1_281_167, 50_000  # images to train and to validate


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments; print a line for every combination."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[IMAGENET[0] // 8, IMAGENET[0]])
    parser.add_argument("--clusters", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.35, 1.0])
    arguments = parser.parse_args(argv)
    print("   images  clusters  classes  share     table  purity    count      all")
    for num_images, num_clusters, share in product(
        arguments.images, arguments.clusters, arguments.shares
    ):
        shape = num_clusters, arguments.classes
        seconds = measured(num_images, shape, share)
        print(f"{num_images:9}  {shape[0]:8}  {shape[1]:7}  {share:5.2f}  ", end="")
        print("  ".join(f"{value:7.3f}" for value in seconds), flush=True)
    return 0


def measured(num_images: int, shape: tuple[int, int], share: float) -> list[float]:
    """Return seconds for the table, both matchings, and for everything."""
    train = drawn(num_images, shape, share, seed=0)
    val = drawn(IMAGENET[1], shape, share, seed=1)
    table = contingency(*train, *shape)
    return [
        fastest(lambda: contingency(*train, *shape)),
        fastest(lambda: match_clusters(table)),
        fastest(lambda: match_clusters(table, matching="count")),
        fastest(lambda: align(*train, *val, num_clusters=shape[0]).notes()),
    ]


def drawn(
    num_images: int, shape: tuple[int, int], share: float, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw clusters and classes of images; class c belongs into cluster c modulo K."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, shape[1], size=num_images)
    elsewhere = rng.integers(0, shape[0], size=num_images)
    return np.where(rng.uniform(size=num_images) < share, labels % shape[0], elsewhere), labels


def fastest(call: Callable[[], object]) -> float:
    """Return the least seconds of some runs."""
    seconds = []
    for _ in range(NUM_RUNS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    raise SystemExit(main())
