"""Compare training steps on this CPU with freed memory returned and kept, in alternating processes.

    python tools/bench_freed_memory.py
    python tools/bench_freed_memory.py --students resnet18 --image-size 224 --batch-size 32

A line for each student: milliseconds of a step (forward, backward, AdamW; the best of several), and
the most memory that each process held.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Sequence

import torch

from distill.device import autocast, keep_freed_memory, pick_precision
from distill.models.networks import build_network, prepare_for_device
from students.registry import STUDENTS

CPU = torch.device("cpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments; print a line for every student."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--students", nargs="+", default=["alexnet", "resnet18"])
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=2, help="processes of each kind")
    options = parser.parse_args(argv)
    print("student         given back ms   kept ms  ratio   given back MiB  kept MiB")
    for name in options.students:
        seconds, held = [float("inf"), float("inf")], [0.0, 0.0]
        for _ in range(options.repeat):
            for kept in (False, True):
                found, memory = in_process(name, kept, options)
                seconds[kept] = min(seconds[kept], found)
                held[kept] = max(held[kept], memory)
        back, keep = (1000 * s for s in seconds)
        print(f"{name:16}{back:13.0f}{keep:10.0f}{back / keep:7.2f}{held[0]:17.0f}{held[1]:10.0f}")
    return 0


def in_process(name: str, kept: bool, options: argparse.Namespace) -> tuple[float, float]:
    """Return the seconds of a step and the MiB held, from a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (name, kept, options))


def measure(name: str, kept: bool, options: argparse.Namespace) -> tuple[float, float]:
    """Train for some steps; return the seconds of the best and the most memory held, in MiB."""
    torch.set_num_threads(options.threads)
    if kept and not keep_freed_memory():
        raise SystemExit("this system's C library cannot be asked to keep freed memory")
    size = options.image_size
    network = prepare_for_device(build_network(STUDENTS.get(name), image_size=size), CPU)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    images = torch.randint(0, 256, (options.batch_size, 3, size, size), dtype=torch.uint8)
    best = float("inf")
    for _ in range(options.steps):
        start = time.perf_counter()
        with autocast(CPU, pick_precision("auto", CPU)):
            embeddings = network(images)
        embeddings.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        best = min(best, time.perf_counter() - start)
    return best, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    raise SystemExit(main())
