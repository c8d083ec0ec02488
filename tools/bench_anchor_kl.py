"""Compare the blocked anchor loss with the plain formula: time, memory, accuracy.

The plain formula is what the authors of CompRess run every step: clone the bank, multiply all of it
with the embeddings, divide by the temperature, softmax both sides, take the KL divergence and let
autograd go back to the student. It reads float32 banks, the blocked loss each dtype asked for.

    python tools/bench_anchor_kl.py                      # 256 x 128,000, 2048 and 512 wide
    python tools/bench_anchor_kl.py --tiny --json FILE   # seconds; checks that everything runs

Method. One process runs all contenders and a large matrix product in turn, again and again; times
are medians. Peak memory is the growth of the resident set (VmHWM, reset before the step) in a fresh
process that holds the banks; Linux only. Errors are against the float64 reference on the banks that
the contender read: of the loss relative to the loss, of the gradient the largest relative to the
largest entry. The inputs are unit rows in clusters, cosines within a cluster 0.5 to 0.95.
Limits: CPU only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.kernels import anchor_kl

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TEMPERATURE = 0.04
Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Inputs:
    """Operands of the loss; rows are unit, the student's embeddings want a gradient."""

    teacher: Tensor
    student: Tensor
    teacher_anchors: Tensor
    student_anchors: Tensor

    def with_banks(self, dtype: torch.dtype) -> Inputs:
        """Return the same operands with banks of another dtype."""
        banks = self.teacher_anchors.to(dtype), self.student_anchors.to(dtype)
        return Inputs(self.teacher, self.student, *banks)


def make_inputs(shape: Shape, seed: int = 0) -> Inputs:
    """Draw unit rows in K / 100 clusters; a third of the student's anchors sit in a wrong one.

    Args:
        shape: B, K, Dt, Ds.
        seed: Of the generator.
    """
    B, K, Dt, Ds = shape
    generator = torch.Generator().manual_seed(seed)
    num_clusters = max(2, K // 100)
    cluster = torch.randint(num_clusters, (B + K,), generator=generator)
    confused = torch.rand(B + K, generator=generator) < 1 / 3
    confused[:B] = False
    guess = torch.randint(num_clusters, (B + K,), generator=generator)
    teacher = _clustered_rows(cluster, num_clusters, Dt, generator)
    student = _clustered_rows(torch.where(confused, guess, cluster), num_clusters, Ds, generator)
    return Inputs(
        teacher[:B].clone(), student[:B].clone().requires_grad_(), teacher[B:], student[B:]
    )


def _clustered_rows(
    cluster: Tensor, num_clusters: int, width: int, generator: torch.Generator
) -> Tensor:
    """Return unit rows (N x D) around random centres, at cosines of 0.7 to 0.97 with them."""
    centres = F.normalize(torch.randn(num_clusters, width, generator=generator))
    rows = torch.empty(len(cluster), width)
    for start in range(0, len(cluster), 4096):
        members = cluster[start : start + 4096]
        spread = 0.25 + 0.75 * torch.rand(len(members), 1, generator=generator)
        noise = F.normalize(torch.randn(len(members), width, generator=generator))
        rows[start : start + 4096] = F.normalize(centres[members] + spread * noise)
    return rows


def plain_step(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Evaluate loss and student gradient by the plain formula; banks of the embeddings' dtype."""
    student_logits = _plain_logits(inputs.student, inputs.student_anchors)
    teacher_logits = _plain_logits(inputs.teacher, inputs.teacher_anchors)
    p = teacher_logits.softmax(1)
    loss = F.kl_div(student_logits.log_softmax(1), p, reduction="batchmean")
    (gradient,) = torch.autograd.grad(loss, inputs.student)
    return loss.detach(), gradient


def _plain_logits(embeddings: Tensor, anchors: Tensor) -> Tensor:
    # The bank is cloned because it is overwritten in place before autograd comes back for it.
    return (torch.mm(anchors.clone(), embeddings.T).T / TEMPERATURE).contiguous()


def kernel_step(inputs: Inputs, implementation: str) -> tuple[Tensor, Tensor]:
    """Evaluate loss and student gradient by `anchor_kl`."""
    loss = anchor_kl(
        inputs.teacher,
        inputs.student,
        inputs.teacher_anchors,
        inputs.student_anchors,
        teacher_temperature=TEMPERATURE,
        student_temperature=TEMPERATURE,
        implementation=implementation,
    )
    (gradient,) = torch.autograd.grad(loss, inputs.student)
    return loss.detach(), gradient


def step(contender: str, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Run "plain" or "blocked" once."""
    return plain_step(inputs) if contender == "plain" else kernel_step(inputs, contender)


def median_seconds(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Time every call in turn, `repeats` rounds after one unmeasured round; return medians."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            result = call()
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
            del result
    return {name: statistics.median(values) for name, values in seconds.items()}


def matrix_product(dtype: torch.dtype, side: int) -> Callable[[], object]:
    """Return a call that multiplies two side x side matrices into a third."""
    a, b, out = (torch.rand(side, side).to(dtype) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def errors(contender: str, inputs: Inputs) -> dict[str, float]:
    """Compare a contender with the float64 reference on the same inputs."""
    loss, gradient = step(contender, inputs)
    true_loss, true_gradient = kernel_step(inputs, "reference")
    return {
        "loss": loss.item(),
        "loss_error": abs(loss.item() / true_loss.item() - 1),
        "gradient_error": (
            (gradient - true_gradient).abs().max() / true_gradient.abs().max()
        ).item(),
    }


def peak_memory(contender: str, dtype: str, shape: Shape, threads: int) -> int | None:
    """Measure a step's additional resident bytes in a fresh process; None where it cannot be."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, __file__, "--peak", contender, "--dtypes", dtype]
    command += ["--threads", str(threads)]
    for flag, size in zip(
        ("--batch", "--anchors", "--teacher-dim", "--student-dim"), shape, strict=True
    ):
        command += [flag, str(size)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(contender: str, dtype: str, shape: Shape) -> int:
    """Return by how many bytes one step raises this process's resident set at its peak."""
    step(contender, make_inputs((4, 1024, 32, 32)).with_banks(DTYPES[dtype]))  # loads libraries
    inputs = make_inputs(shape).with_banks(DTYPES[dtype])
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not look like a saving
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    step(contender, inputs)
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def benchmark(shape: Shape, dtypes: list[str], repeats: int, threads: int) -> list[dict]:
    """Measure the plain formula and the blocked loss; return a row per contender and dtype."""
    B, K, Dt, Ds = shape
    inputs = make_inputs(shape)
    rows = [("plain", "fp32"), *(("blocked", dtype) for dtype in dtypes)]
    operands = {dtype: inputs.with_banks(DTYPES[dtype]) for dtype in {"fp32", *dtypes}}
    calls: dict[str, Callable[[], object]] = {
        f"{contender} {dtype}": lambda c=contender, d=dtype: step(c, operands[d])
        for contender, dtype in rows
    }
    side = min(4096, K)
    for dtype in operands:  # float16 banks are multiplied in float32
        calls[f"mm {dtype}"] = matrix_product(DTYPES["fp32" if dtype == "fp16" else dtype], side)
    seconds = median_seconds(calls, repeats)
    gigaflop = 2 * B * K * (Dt + 2 * Ds) / 1e9
    table = []
    for contender, dtype in rows:
        spent, rate = seconds[f"{contender} {dtype}"], 2 * side**3 / 1e9 / seconds[f"mm {dtype}"]
        table.append(
            {
                "contender": contender,
                "banks": dtype,
                "seconds": spent,
                "speedup": seconds["plain fp32"] / spent,
                "gigaflop": gigaflop,
                "gigaflop_per_second": gigaflop / spent,
                "share_of_mm": gigaflop / spent / rate,
                "peak_bytes": peak_memory(contender, dtype, shape, threads),
                **errors(contender, operands[dtype]),
            }
        )
    for row in table:
        peaks = row["peak_bytes"], table[0]["peak_bytes"]
        row["peak_ratio"] = peaks[0] / peaks[1] if all(peaks) else None
    return table


def show(table: list[dict]) -> str:
    """Format the rows for people."""
    head = (
        f"{'contender':12}{'ms':>8}{'faster':>8}{'GFLOP':>8}{'GFLOP/s':>9}{'of mm':>7}"
        f"{'peak MiB':>10}{'of plain':>9}{'loss':>9}{'loss err':>10}{'grad err':>10}"
    )
    lines = [head]
    for row in table:
        peak = "n/a" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
        ratio = "n/a" if row["peak_ratio"] is None else f"{row['peak_ratio']:.2f}"
        lines.append(
            f"{row['contender'] + ' ' + row['banks']:12}{row['seconds'] * 1e3:8.1f}"
            f"{row['speedup']:7.2f}x{row['gigaflop']:8.1f}{row['gigaflop_per_second']:9.1f}"
            f"{row['share_of_mm']:7.2f}{peak:>10}{ratio:>9}{row['loss']:9.4f}"
            f"{row['loss_error']:10.1e}{row['gradient_error']:10.1e}"
        )
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; `--tiny` replaces the default sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256, help="B, embeddings per step")
    parser.add_argument("--anchors", type=int, default=128_000, help="K, rows of the banks")
    parser.add_argument("--teacher-dim", type=int, default=2048, help="Dt")
    parser.add_argument("--student-dim", type=int, default=512, help="Ds")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7, help="measured rounds")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--tiny", action="store_true", help="small sizes, two rounds")
    parser.add_argument("--peak", choices=("plain", "blocked"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.tiny:
        options.batch, options.anchors, options.repeats = 16, 2000, 2
        options.teacher_dim, options.student_dim = 64, 32
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print its table."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    shape = (options.batch, options.anchors, options.teacher_dim, options.student_dim)
    if options.peak:
        print(measure_peak(options.peak, options.dtypes[0], shape))
        return 0
    table = benchmark(shape, options.dtypes, options.repeats, options.threads)
    print("B {} K {} Dt {} Ds {}, {} threads".format(*shape, options.threads))
    print(show(table))
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
