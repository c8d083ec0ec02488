"""Check the fused anchor loss on a CUDA GPU, then time it against the plain formula.

    python tools/bench_gpu.py                          # 256 x 128,000, 2048 and 512 wide
    python tools/bench_gpu.py --published --json FILE  # the four published pairs of widths
    python tools/bench_gpu.py --published --tune       # first measures all plans, keeps the best
    python tools/bench_gpu.py --tiny                   # seconds; in Triton's interpreter if need be

First the fused loss and its gradient are compared with float64 on the device, and so is the plain
formula in the same dtype (`gpu_checks.py`). A case whose fused error is too large is named and
not timed, and the exit status is 1; it is 2 where nothing can run.

Then the loss alone and the loss with its gradient are timed (`gpu_timing.py`): fused, by the plain
formula (`contenders.py`), and by torch.compile of it, one after the other in one process, operands
of one dtype. TB/s and TFLOP/s count what no implementation can avoid (`fused/cost.py`: every bank
read once, the student's twice for the gradient, and no product repeated), so that they compare
contenders; `of roof` is the time in which the device could do that by its published rates, over
the time measured. `of plan` is the time measured over the one that the cost model predicts for the
plan. Memory is the peak beyond the operands. `faster` is against the plain formula.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from contenders import DTYPES, Inputs, Loss, kernel_loss, make_inputs, plain_loss, step
from gpu_checks import check
from gpu_report import (
    Report,
    check_in_words,
    plan_in_words,
    problem_in_words,
    timing_table,
    tuning_table,
)
from gpu_timing import milliseconds, peak_bytes
from gpu_tuning import tune_both_kinds

from distill.kernels import fused
from distill.kernels.fused.cost import floor_bytes, floor_flop, floor_seconds, predicted_seconds
from distill.kernels.fused.plan import Plan, Problem

PUBLISHED = tuple(product((2048, 8192), (512, 4096)))


def examine(problem: Problem, tune: bool, report: Report) -> None:
    """Tune where asked to, check, and time what is right."""
    from triton.errors import TritonError

    name = problem_in_words(problem)
    print(f"\n{name}", flush=True)
    try:
        failures = _examine(problem, tune, report)
    except (TritonError, torch.OutOfMemoryError) as error:
        failures = [f"cannot run: {_in_words(error)}"]
    report.failures += [f"{name}: {failure}" for failure in failures]


def _examine(problem: Problem, tune: bool, report: Report) -> list[str]:
    """Do the work of `examine`; return what is wrong."""
    from distill.kernels.fused.scan import plan_for

    shape = (problem.B, problem.n, problem.Dt, problem.Ds)
    drawn = make_inputs(shape, device=report.device.type, one_bank=problem.one_bank)
    inputs = drawn.with_banks(DTYPES[problem.dtype])
    del drawn
    failures = []
    if tune:
        candidates = tune_both_kinds(problem, inputs, report.paper)
        report.add("tuning", problem, candidates, tuning_table(candidates))
        failures = [f"wrong: {plan_in_words(row['plan'])}" for row in candidates if row["wrong"]]
    plan = plan_for(problem, report.device)
    print(f"plan: {plan_in_words(plan)}")
    checks = check(problem, inputs)
    report.add("checks", problem, checks, "\n".join(map(check_in_words, checks)))
    wrong = [check_in_words(row) for row in checks if not row["passed"]]
    if not wrong:
        rows = compare(measure(problem, inputs, report), problem, plan, report)
        report.add("rows", problem, rows, timing_table(rows))
    return failures + wrong


def measure(problem: Problem, inputs: Inputs, report: Report) -> list[dict]:
    """Time all contenders; one that cannot run is left out with a note."""
    given = inputs.with_embeddings(DTYPES[problem.dtype])
    rows = []
    for name, loss in contenders(report.device).items():
        try:
            for gradient in (False, True):
                timed = time_one(loss, given, gradient)
                rows.append({"contender": name, "gradient": gradient, **timed})
        except Exception as error:
            # torch.compile fails in many ways, the plain formula for want of memory.
            if name == "fused":
                raise
            report.note(f"{problem_in_words(problem)}: {name} left out, {_in_words(error)}")
    return rows


def contenders(device: torch.device) -> dict[str, Loss]:
    """Return the losses that are timed; without a GPU the compiled one is only traced."""
    torch.compiler.reset()  # else it gives up after a few sizes
    backend = "inductor" if device.type == "cuda" else "eager"
    compiled = torch.compile(plain_loss, fullgraph=True, dynamic=False, backend=backend)
    return {"fused": kernel_loss("triton"), "plain": plain_loss, "compiled": compiled}


def time_one(loss: Loss, inputs: Inputs, gradient: bool) -> dict:
    """Measure a loss, with its gradient or alone."""

    def call() -> object:
        if gradient:
            return step(loss, inputs)
        with torch.no_grad():
            return loss(*inputs.tensors)

    call()  # compiles
    device = inputs.student.device
    return {"ms": milliseconds(call, device), "peak_bytes": peak_bytes(call, device)}


def compare(rows: list[dict], problem: Problem, plan: Plan, report: Report) -> list[dict]:
    """Add to times what they are of the roofline, the plan's prediction and the plain formula."""
    plain = {row["gradient"]: row["ms"] for row in rows if row["contender"] == "plain"}
    predicted = predicted_seconds(plan, problem, report.paper) * 1e3
    for row in rows:
        kind, seconds = {"with_gradient": row["gradient"]}, row["ms"] / 1e3
        row["terabytes_per_second"] = floor_bytes(problem, **kind) / seconds / 1e12
        row["teraflop_per_second"] = floor_flop(problem, **kind) / seconds / 1e12
        row["share_of_roofline"] = floor_seconds(problem, report.paper, **kind) / seconds
        row["speedup"] = plain[row["gradient"]] / row["ms"] if row["gradient"] in plain else None
        of_plan = row["contender"] == "fused" and row["gradient"]  # the model has the gradient in
        row["predicted_ms"] = predicted if of_plan else None
        row["measured_over_predicted"] = row["ms"] / predicted if of_plan else None
        row["plan"] = plan if row["contender"] == "fused" else None
    return rows


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; `--tiny` replaces the sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256, help="B, embeddings per step")
    parser.add_argument("--anchors", type=int, default=128_000, help="K, rows of the banks")
    parser.add_argument("--teacher-dim", type=int, default=2048, help="Dt")
    parser.add_argument("--student-dim", type=int, default=512, help="Ds")
    parser.add_argument("--published", action="store_true", help="Dt 2048, 8192 x Ds 512, 4096")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16", "fp16", "fp32"])
    parser.add_argument("--one-bank", action="store_true", help="both sides read one, Dt wide")
    parser.add_argument("--tune", action="store_true", help="measure all plans, keep the best")
    parser.add_argument("--json", type=Path, help="write everything here too")
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.batch, options.anchors = 16, 300
        options.teacher_dim, options.student_dim, options.published = 64, 32, False
    return options


def problems(options: argparse.Namespace) -> list[Problem]:
    """Return the cases that are asked for."""
    widths = PUBLISHED if options.published else ((options.teacher_dim, options.student_dim),)
    made = [
        Problem(B=options.batch, n=options.anchors, Dt=Dt, Ds=Ds, dtype=dtype)
        for Dt, Ds in widths
        for dtype in options.dtypes
    ]
    if options.one_bank:
        made = list(dict.fromkeys(replace(p, Ds=p.Dt, one_bank=True) for p in made))
    return made


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Run kernels in Triton's interpreter, and keep what is tuned away from real devices' plans."""
    assert "triton" not in sys.modules, "Triton reads TRITON_INTERPRET when it is imported"
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"TRITON_INTERPRET": "1", "DISTILL_CACHE": folder}
        yield


def main(arguments: list[str] | None = None) -> int:
    """Run checks and benchmark; return the exit status."""
    options = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.tiny:
        print("bench_gpu needs a CUDA GPU, PyTorch sees none; try --tiny", file=sys.stderr)
        return 2
    with interpreted() if device.type == "cpu" else contextlib.nullcontext():
        reason = fused.unavailable_reason(torch.empty(0, device=device))
        if reason is not None:
            print(f"bench_gpu cannot run: {reason}", file=sys.stderr)
            return 2
        report = Report(device)
        try:
            for problem in problems(options):
                examine(problem, options.tune, report)
        finally:  # what was measured before an error is kept
            if options.json:
                report.write(options.json)
    for failure in report.failures:
        print(failure, file=sys.stderr)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
