"""The results of the benchmark on a GPU, as sentences, tables and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from gpu_timing import machine

from distill.kernels.fused.cost import DEVICES, Device
from distill.kernels.fused.plan import Plan, Problem


class Report:
    """Prints what is found as it is found, and keeps it.

    Attributes:
        device: Where the operands are.
        paper: Its published rates.
        failures: A sentence per case that is wrong or cannot run.
    """

    def __init__(self, device: torch.device) -> None:
        from distill.kernels.fused.scan import device_on_paper

        self.device, self.paper = device, device_on_paper(device)
        self.failures: list[str] = []
        self._content: dict = {"machine": machine(device), "rates": asdict(self.paper)}
        self._content |= {"tuning": [], "checks": [], "rows": [], "notes": []}
        print(", ".join(f"{name} {value}" for name, value in self._content["machine"].items()))
        print(_rates_in_words(self.paper))

    def add(self, what: str, problem: Problem, rows: list[dict], words: str) -> None:
        """Print words about a problem and keep the rows; `what` is tuning, checks or rows."""
        print(words, flush=True)
        self._content[what] += [{**asdict(problem), **row} for row in rows]

    def note(self, sentence: str) -> None:
        """Print and keep what a reader should know."""
        print(sentence, flush=True)
        self._content["notes"].append(sentence)

    def write(self, file: Path) -> None:
        """Write all of it as JSON."""
        content = self._content | {"failures": self.failures}
        file.write_text(json.dumps(content, indent=2, default=asdict) + "\n")  # plans too


def _rates_in_words(paper: Device) -> str:
    known = [name for name in DEVICES if name in paper.name]
    caution = "" if known else " (of another device: no rates of this one are known)"
    return (
        f"published rates: {paper.bandwidth / 1e12:.2f} TB/s, {paper.tensor_rate / 1e12:.0f} "
        f"TFLOP/s in 16 bits, {paper.float_rate / 1e12:.0f} in float32{caution}"
    )


def problem_in_words(problem: Problem) -> str:
    """Say which case it is."""
    p = problem
    banks = "one bank" if p.one_bank else "two banks"
    return f"B {p.B} K {p.n} Dt {p.Dt} Ds {p.Ds} {p.dtype}, {banks}"


def plan_in_words(plan: Plan) -> str:
    """Say what a plan does."""
    a, b = plan.first, plan.second
    return (
        f"record {plan.record}; first {a.block_b} rows x {a.block_k} anchors (student "
        f"{a.block_s}), {a.block_d} columns at a time, {a.num_warps} warps, {a.num_stages} stages; "
        f"second {b.block_b} rows x {b.block_c} columns, {b.block_n} anchors at a time, "
        f"{b.num_warps} warps, {b.num_stages} stages, {plan.num_shares} shares; "
        f"{plan.chunk} anchors per chunk"
    )


def check_in_words(row: dict) -> str:
    """Say how a check went."""
    parts = [
        f"{name.replace('_', ' ')} {row['fused'][name]:.1e} (plain {row['plain'][name]:.1e}, "
        f"allowed {row['allowed'][name]:.1e})"
        for name in row["fused"]
    ]
    return f"{row['case']}, K {row['K']}: {', '.join(parts)}: {'ok' if row['passed'] else 'WRONG'}"


def tuning_table(rows: list[dict]) -> str:
    """Format the candidates, the fastest first."""
    lines = [f"{'predicted ms':>14}{'ms':>9}  plan"]
    for row in sorted(rows, key=lambda row: (row["masked"], row["ms"] or float("inf"))):
        measured = "n/a" if row["ms"] is None else f"{row['ms']:.3f}"
        words = ("masked: " if row["masked"] else "") + plan_in_words(row["plan"])
        ending = (
            " (kept)"
            if row["kept"]
            else f" ({row['unavailable_reason']})"
            if row["unavailable_reason"]
            else ""
        )
        lines.append(f"{row['predicted_ms']:14.3f}{measured:>9}  {words}{ending}")
    return "\n".join(lines)


def timing_table(rows: list[dict]) -> str:
    """Format the times."""
    lines = [
        f"{'contender':10}{'of':16}{'ms':>9}{'faster':>8}{'TB/s':>7}{'TFLOP/s':>9}{'of roof':>9}"
        f"{'of plan':>9}{'peak MiB':>10}"
    ]
    for row in rows:
        faster = "n/a" if row["speedup"] is None else f"{row['speedup']:.2f}x"
        peak = "n/a" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
        ratio = row["measured_over_predicted"]
        lines.append(
            f"{row['contender']:10}{'loss + gradient' if row['gradient'] else 'loss':16}"
            f"{row['ms']:9.3f}{faster:>8}{row['terabytes_per_second']:7.2f}"
            f"{row['teraflop_per_second']:9.1f}{row['share_of_roofline']:9.2f}"
            f"{'' if ratio is None else format(ratio, '.2f'):>9}{peak:>10}"
        )
    return "\n".join(lines)
