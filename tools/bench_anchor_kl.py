"""Compare the blocked anchor loss with the plain formula on a CPU: time, memory, accuracy.

    python tools/bench_anchor_kl.py                      # 256 x 128,000, 2048 and 512 wide
    python tools/bench_anchor_kl.py --anchors 16000 64000 128000 512000
    python tools/bench_anchor_kl.py --tiny --json FILE   # seconds; checks that everything runs

Method. For each number of anchors one process runs all contenders and large matrix products in
turn, again and again; times are medians. The plain formula (`contenders.py`) reads float32 banks,
the blocked loss each dtype asked for. With several numbers of anchors each has a fresh process, so
that nothing is left of the one before; a contender that would not fit into memory is left out.

GFLOP/s count the products executed, 2 B K (Dt + 2 Ds) in either contender. They are compared with
square products of the dtype in which the banks are multiplied, measured in the same rounds: `of mm`
with torch.mm, which some processors run at half of their vector width, `of best` with the faster of
torch.mm and oneDNN as the loss calls it (`distill.kernels.blocked`).

Peak memory is the growth of the resident set (VmHWM, reset before the step) in a fresh process that
holds the banks; Linux only. Errors are against float64 on the banks that the contender read: of the
loss relative to the loss, of the gradient the largest relative to the largest entry.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import psutil
import torch
from contenders import (
    DTYPES,
    Inputs,
    Shape,
    errors,
    exact_step,
    kernel_loss,
    make_inputs,
    plain_loss,
    step,
)
from resident_memory import can_measure, in_fresh_process, peak_growth
from torch import Tensor
from yardsticks import BY, Calls, matrix_products, median_seconds, product_dtype

from distill.kernels.blocked import NUM_IMAGES

NAMES = ("plain", "blocked")
Contender = tuple[str, str]  # one of NAMES, dtype of the banks


def run(contender: str, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Evaluate loss and student gradient by "plain" or "blocked"."""
    return step(plain_loss if contender == "plain" else kernel_loss(contender), inputs)


def fitting(shape: Shape, dtypes: list[str]) -> tuple[list[Contender], list[str]]:
    """Return the contenders that fit into the memory now free, and a note on each other one."""
    contenders = [("plain", "fp32"), *(("blocked", dtype) for dtype in dtypes)]
    available, chosen, notes = psutil.virtual_memory().available, [], []
    for contender in contenders:
        needed = needed_bytes(contender, shape, dtypes)
        if needed <= available:
            chosen.append(contender)
            continue
        notes.append(
            f"{' '.join(contender)} left out, it needs about {needed / 1e9:.1f} GB "
            f"and {available / 1e9:.1f} GB are free"
        )
    return chosen, notes


def needed_bytes(contender: Contender, shape: Shape, dtypes: list[str]) -> int:
    """Estimate the memory of the process that times a contender and measures its error."""
    B, K, Dt, Ds = shape
    banks = {dtype: K * (Dt + Ds) * DTYPES[dtype].itemsize for dtype in {"fp32", *dtypes}}
    record, work = 2 * 4 * B * K, 5 * 8 * B * K  # float64 logits and softmaxes: the exact answer
    if contender[0] == "plain":  # its clones; float32 logits, softmaxes and their gradients
        work = max(work, banks["fp32"] + 8 * 4 * B * K)
    return sum(banks.values()) + record + work


def benchmark(
    shape: Shape, contenders: list[Contender], repeats: int, threads: int
) -> tuple[list[dict], dict[str, float]]:
    """Measure contenders at one size; return a row for each, and the GFLOP/s of the products."""
    torch.set_num_threads(threads)
    B, K, Dt, Ds = shape
    inputs = make_inputs(shape)
    operands = {dtype: inputs.with_banks(DTYPES[dtype]) for _, dtype in contenders}
    calls: Calls = {
        f"{contender} {dtype}": lambda c=contender, d=dtype: run(c, operands[d])
        for contender, dtype in contenders
    }
    side = min(4096, K // NUM_IMAGES * NUM_IMAGES)
    products: Calls = {}
    for dtype in {product_dtype(dtype): None for dtype in operands}:
        products |= matrix_products(dtype, side)
    seconds = median_seconds(calls | products, repeats)
    rates = {name: 2 * side**3 / 1e9 / seconds[name] for name in products}
    exact = {dtype: exact_step(operands[dtype]) for dtype in operands}
    gigaflop = 2 * B * K * (Dt + 2 * Ds) / 1e9
    table = []
    for contender, dtype in contenders:
        rate = gigaflop / seconds[f"{contender} {dtype}"]
        yardsticks = [rates[f"{by} {product_dtype(dtype)}"] for by in BY]
        found = run(contender, operands[dtype])
        table.append(
            {
                **dict(zip(("B", "K", "Dt", "Ds"), shape, strict=True)),
                "contender": contender,
                "banks": dtype,
                "seconds": seconds[f"{contender} {dtype}"],
                "gigaflop": gigaflop,
                "gigaflop_per_second": rate,
                "share_of_mm": rate / yardsticks[0],
                "share_of_best": rate / max(yardsticks),
                "loss": found[0].item(),
                **errors(found, exact[dtype]),
            }
        )
    return table, rates


def peak_memory(contender: Contender, shape: Shape, threads: int) -> int | None:
    """Measure a step's additional resident bytes in a fresh process; None where it cannot be."""
    if not can_measure():
        return None
    return in_fresh_process(measure_peak, contender, shape, threads)


def measure_peak(contender: Contender, shape: Shape, threads: int) -> int:
    """Return by how many bytes one step raises this process's resident set at its peak."""
    torch.set_num_threads(threads)
    name, dtype = contender
    run(name, make_inputs((4, 1024, 32, 32)).with_banks(DTYPES[dtype]))  # loads libraries
    inputs = make_inputs(shape).with_banks(DTYPES[dtype])
    return peak_growth(lambda: run(name, inputs))


def compare(table: list[dict]) -> list[str]:
    """Add ratios to the rows of one size; return what they say of 16-bit banks.

    Ratios to a contender that was left out are None.
    """
    found = {(row["contender"], row["banks"]): row for row in table}
    plain, single = found.get(("plain", "fp32")), found.get(("blocked", "fp32"))
    notes = []
    for row in table:
        row["speedup"] = plain and plain["seconds"] / row["seconds"]
        peaks = row["peak_bytes"], plain and plain["peak_bytes"]
        row["peak_ratio"] = peaks[0] / peaks[1] if all(peaks) else None
        row["speed_over_fp32"] = single and single["seconds"] / row["seconds"]
        if row["contender"] == "blocked" and single is not None and row is not single:
            notes.append(
                f"{row['banks']} banks run at {row['speed_over_fp32']:.2f} times the "
                f"speed of fp32 banks, with a loss error of {row['loss_error']:.1e} instead of "
                f"{single['loss_error']:.1e} and a gradient error of {row['gradient_error']:.1e} "
                f"instead of {single['gradient_error']:.1e}"
            )
    return notes


def show(table: list[dict]) -> str:
    """Format the rows for people."""

    def optional(value: float | None, form: str) -> str:
        return "n/a" if value is None else format(value, form)

    lines = [
        f"{'contender':12}{'ms':>9}{'faster':>8}{'GFLOP/s':>9}{'of mm':>7}{'of best':>8}"
        f"{'peak MiB':>10}{'of plain':>9}{'loss':>9}{'loss err':>10}{'grad err':>10}"
    ]
    for row in table:
        peak = row["peak_bytes"] and row["peak_bytes"] / 2**20
        lines.append(
            f"{row['contender'] + ' ' + row['banks']:12}{row['seconds'] * 1e3:9.1f}"
            f"{optional(row['speedup'], '.2f'):>7}x{row['gigaflop_per_second']:9.1f}"
            f"{row['share_of_mm']:7.2f}{row['share_of_best']:8.2f}"
            f"{optional(peak, '.0f'):>10}{optional(row['peak_ratio'], '.2f'):>9}"
            f"{row['loss']:9.4f}{row['loss_error']:10.1e}{row['gradient_error']:10.1e}"
        )
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; `--tiny` replaces the default sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256, help="B, embeddings per step")
    parser.add_argument("--anchors", type=int, nargs="+", help="K, rows of the banks (128000)")
    parser.add_argument("--teacher-dim", type=int, default=2048, help="Dt")
    parser.add_argument("--student-dim", type=int, default=512, help="Ds")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7, help="measured rounds")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--tiny", action="store_true", help="small sizes, two rounds")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.batch, options.repeats = 16, 2
        options.teacher_dim, options.student_dim = 64, 32
    options.anchors = options.anchors or [2000 if options.tiny else 128_000]
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print its table."""
    options = parse(arguments)
    table, notes = [], []
    for K in options.anchors:
        shape = (options.batch, K, options.teacher_dim, options.student_dim)
        print("B {} K {} Dt {} Ds {}, {} threads".format(*shape, options.threads))
        rows, words = measure(shape, options)
        print("\n".join([show(rows), *words]), flush=True)
        table += rows
        notes += [f"K {K}: {sentence}" for sentence in words]
    if options.json:
        machine = {"processor": platform.processor(), "torch": torch.__version__}
        content = {"machine": machine, "threads": options.threads, "rows": table, "notes": notes}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


def measure(shape: Shape, options: argparse.Namespace) -> tuple[list[dict], list[str]]:
    """Measure all that is asked for at one size; return rows and notes."""
    contenders, notes = fitting(shape, options.dtypes)
    if not contenders:
        return [], notes
    work = (shape, contenders, options.repeats, options.threads)
    several = len(options.anchors) > 1
    rows, rates = in_fresh_process(benchmark, *work) if several else benchmark(*work)
    for row, contender in zip(rows, contenders, strict=True):
        row["peak_bytes"] = peak_memory(contender, shape, options.threads)
    notes += compare(rows)
    products = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    return rows, [*notes, f"large products in GFLOP/s: {products}"]


if __name__ == "__main__":
    sys.exit(main())
