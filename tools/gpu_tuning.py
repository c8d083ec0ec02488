"""Measure every candidate plan of a problem and keep the fastest correct one on disk."""

from __future__ import annotations

from dataclasses import replace

import torch
from contenders import DTYPES, Inputs
from gpu_checks import Truth, by_plan
from gpu_timing import milliseconds

from distill.kernels.fused.cost import Device, predicted_seconds
from distill.kernels.fused.plan import Plan, Problem
from distill.kernels.fused.tuning import tune


def tune_both_kinds(problem: Problem, inputs: Inputs, device: Device) -> list[dict]:
    """Tune a problem and the same with a self-mask, which has plans of its own.

    Returns:
        A row per candidate: masked, kept, plan, predicted_ms, ms (None: it cannot run or is wrong),
        unavailable_reason, wrong. No plan of a kind is kept when none of them can run.
    """
    rows = []
    for has_mask in (False, True):
        given = inputs.masked(problem.n) if has_mask else inputs
        kind = replace(problem, has_mask=has_mask)
        timer = _Timer(kind, given, device)
        kept = timer.tune()
        rows += [{"masked": has_mask, "kept": row["plan"] == kept, **row} for row in timer.rows]
    return rows


class _Timer:
    def __init__(self, problem: Problem, inputs: Inputs, device: Device) -> None:
        self.rows: list[dict] = []
        self._problem, self._device = problem, device
        self._inputs = inputs.with_embeddings(DTYPES[problem.dtype])
        self._truth = Truth(inputs, problem.dtype)

    def tune(self) -> Plan | None:
        """Measure all plans and keep the best; None when none of them can run."""
        try:
            return tune(self._problem, self._device, self.seconds)
        except RuntimeError:
            if not self.rows or any(row["ms"] is not None for row in self.rows):
                raise  # of another cause
            return None

    def seconds(self, plan: Plan) -> float:
        """Measure loss and gradient by a plan; infinity when it cannot run or is wrong."""
        from triton.errors import TritonError

        spent, unavailable_reason, wrong = None, None, False
        try:
            found = self._truth.errors(by_plan(plan, self._truth.inputs))
            wrong = not self._truth.allows(found)
            if wrong:
                unavailable_reason = "WRONG: " + ", ".join(f"{k} {v:.1e}" for k, v in found.items())
            else:
                device = self._inputs.student.device
                spent = milliseconds(lambda: by_plan(plan, self._inputs), device)
        except (TritonError, torch.OutOfMemoryError) as error:
            unavailable_reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        predicted = predicted_seconds(plan, self._problem, self._device) * 1e3
        found = {
            "predicted_ms": predicted,
            "ms": spent,
            "unavailable_reason": unavailable_reason,
            "wrong": wrong,
        }
        self.rows.append({"plan": plan, **found})
        return float("inf") if spent is None else spent / 1e3
