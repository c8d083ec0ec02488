"""Predict the time of the fused anchor KL from published rates, with every byte counted.

    python tools/roofline.py B K Dt Ds DTYPE DEVICE
    python tools/roofline.py 256 128000 8192 512 bf16 H100
    python tools/roofline.py --published          # the published sizes on every device

The floor is what no implementation avoids: the teacher's bank once, the student's twice, embeddings
and gradient once; 2 B K (Dt + 2 Ds) FLOP; the larger of both times. The plan is the one that the
launcher would choose without measurements. Per kernel: bytes that its loads and stores ask for,
bytes from device memory by a stated model of the L2 cache, FLOP of whole tiles, and the time, the
larger of memory and products plus a launch. The model and its assumptions are the docstring of
`distill.kernels.fused.cost`. Nothing here is measured: `tools/bench_gpu.py` does that.
"""

from __future__ import annotations

import argparse
import sys

from gpu_report import plan_in_words

from distill.kernels.fused.cost import (
    CHAIN_SECONDS,
    DEVICES,
    LAUNCH_SECONDS,
    Device,
    costs,
    floor_bytes,
    floor_flop,
    floor_seconds,
    predicted_seconds,
)
from distill.kernels.fused.plan import ITEMSIZE, Plan, Problem
from distill.kernels.fused.tuning import candidates, choose

PUBLISHED = [(256, 128_000, Dt, Ds) for Dt in (2048, 8192) for Ds in (512, 4096)]


def report(problem: Problem, device: Device) -> str:
    """Describe floor, plan and alternatives for one problem on one device."""
    plan = choose(problem, device)
    floor = floor_seconds(problem, device)
    rows = costs(plan, problem, device)
    seconds = sum(row.seconds for row in rows)
    lines = [
        f"B {problem.B} K {problem.n} Dt {problem.Dt} Ds {problem.Ds} {problem.dtype}"
        f"{' one bank' if problem.one_bank else ''} on {device.name}",
        f"floor       {_mb(floor_bytes(problem))} MB   {_gflop(floor_flop(problem))} GFLOP   "
        f"{_us(floor)} us",
        f"plan        {plan_in_words(plan)}",
        f"{'kernel':16}{'launches':>9}{'requested MB':>14}{'memory MB':>11}{'GFLOP':>9}{'us':>9}",
    ]
    for row in rows:
        lines.append(
            f"{row.name:16}{row.launches:9}{_mb(row.requested):>14}{_mb(row.memory):>11}"
            f"{_gflop(row.flop):>9}{_us(row.seconds):>9}"
        )
    lines += [
        f"{'total':16}{sum(r.launches for r in rows):9}"
        f"{_mb(sum(r.requested for r in rows)):>14}{_mb(sum(r.memory for r in rows)):>11}"
        f"{_gflop(sum(r.flop for r in rows)):>9}{_us(seconds):>9}",
        f"over floor  bytes {sum(r.memory for r in rows) / floor_bytes(problem):.2f}   "
        f"FLOP {sum(r.flop for r in rows) / floor_flop(problem):.2f}   time {seconds / floor:.2f}",
    ]
    for record, other in best_of_each_record(problem, device).items():
        lines.append(f"record {record:8} {_us(predicted_seconds(other, problem, device))} us")
    return "\n".join(lines)


def best_of_each_record(problem: Problem, device: Device) -> dict[str, Plan]:
    """Return the fastest plan of every way to remember the first pass."""
    best: dict[str, Plan] = {}
    for plan in candidates(problem, device):
        known = best.setdefault(plan.record, plan)
        if predicted_seconds(plan, problem, device) < predicted_seconds(known, problem, device):
            best[plan.record] = plan
    return best


def published() -> str:
    """Return the table of the published sizes: predicted time over the floor's."""
    lines = [f"{'Dt':>6}{'Ds':>6}" + "".join(f"{name:>22}" for name in DEVICES)]
    for sizes in PUBLISHED:
        problem = Problem(*sizes, dtype="bf16")
        cells = []
        for device in DEVICES.values():
            seconds = predicted_seconds(choose(problem, device), problem, device)
            cells.append(f"{_us(seconds)} us {seconds / floor_seconds(problem, device):5.2f}")
        lines.append(f"{problem.Dt:6}{problem.Ds:6}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f}"


def _gflop(flop: int) -> str:
    return f"{flop / 1e9:.1f}"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.0f}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("B", type=int, nargs="?", help="rows of the batch")
    parser.add_argument("K", type=int, nargs="?", help="anchors")
    parser.add_argument("Dt", type=int, nargs="?", help="width of the teacher's bank")
    parser.add_argument("Ds", type=int, nargs="?", help="width of the student's bank")
    parser.add_argument("dtype", choices=ITEMSIZE, nargs="?", default="bf16")
    parser.add_argument("device", choices=DEVICES, nargs="?", default="H100")
    parser.add_argument("--one-bank", action="store_true", help="both sides read one bank")
    parser.add_argument("--published", action="store_true", help="table of the published sizes")
    options = parser.parse_args(arguments)
    sizes = (options.B, options.K, options.Dt, options.Ds)
    if not options.published and (None in sizes or min(sizes) < 1):
        parser.error("give B K Dt Ds, all at least 1, or --published")
    if options.one_bank and options.Dt != options.Ds:
        parser.error(f"--one-bank needs equal widths, got {options.Dt} and {options.Ds}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Print the report or the table."""
    options = parse(arguments)
    print(f"launch {LAUNCH_SECONDS * 1e6:.0f} us, chain {CHAIN_SECONDS * 1e6:.1f} us: assumptions")
    if options.published:
        print(published())
        return 0
    problem = Problem(
        options.B,
        options.K,
        options.Dt,
        options.Ds,
        options.dtype,
        one_bank=options.one_bank,
        has_mask=True,
    )
    print(report(problem, DEVICES[options.device]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
