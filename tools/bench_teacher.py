"""Measure what a published teacher costs: seconds to read it and to embed, and the peak memory.

    python tools/write_checkpoint.py r50x4 /tmp/r50x4
    python tools/bench_teacher.py r50x4 --weights /tmp/r50x4
    python tools/bench_teacher.py r50x4 --weights /tmp/r50x4 --image-sizes 64 224 --batch-sizes 1 8

Every line is a process of its own. The peak is that of the whole process: network, activations and
libraries. The rate is that of the fastest of some passes. Linux only, on the CPU.
"""

from __future__ import annotations

import argparse
import time
from itertools import product
from pathlib import Path

import torch
from resident_memory import in_fresh_process, status_bytes

from distill.device import autocast
from distill.models.networks import prepare_for_device
from teachers.load import load_teacher

NUM_PASSES = 3


def main() -> None:
    """Read the arguments; print a line for every combination."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("teacher")
    parser.add_argument("--weights", type=Path, help="in place of the published file")
    parser.add_argument("--image-sizes", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    arguments = parser.parse_args()
    print("  px  batch  precision  read s  images/s  peak GiB")
    for setting in product(arguments.image_sizes, arguments.batch_sizes, arguments.precisions):
        found = in_fresh_process(measured, arguments.teacher, arguments.weights, *setting)
        print("{:4}  {:5}  {:9}  {:6.1f}  {:8.1f}  {:8.2f}".format(*setting, *found), flush=True)


def measured(
    teacher: str, weights: Path | None, image_size: int, batch_size: int, precision: str
) -> tuple[float, float, float]:
    """Return seconds to read, images per second and GiB at the peak of this process."""
    device = torch.device("cpu")
    start = time.perf_counter()
    network = prepare_for_device(
        load_teacher(teacher, weights=weights, image_size=image_size), device
    )
    reading = time.perf_counter() - start
    images = torch.randint(0, 256, (batch_size, 3, image_size, image_size), dtype=torch.uint8)
    seconds = []
    with torch.no_grad(), autocast(device, precision):
        for _ in range(NUM_PASSES):
            start = time.perf_counter()
            network(images)
            seconds.append(time.perf_counter() - start)
    return reading, batch_size / min(seconds), status_bytes("VmHWM") / 2**30


if __name__ == "__main__":
    main()
