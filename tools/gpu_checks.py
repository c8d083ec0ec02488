"""Compare the fused loss with float64, and the plain formula in the same dtype as well.

Embeddings are rounded to the banks' dtype before anything reads them, so that the errors are those
of the arithmetic, and kept in float32, so that the gradient is not rounded once more. The fused
error may be as large as the plain one, or `HAIR`: a plain loss can be right by luck.
"""

from __future__ import annotations

import torch
from contenders import (
    DTYPES,
    TEMPERATURE,
    Inputs,
    errors,
    exact_step,
    kernel_loss,
    plain_loss,
    step,
)
from torch import Tensor

from distill.kernels.fused.plan import Dtype, Plan, Problem

HAIR: dict[Dtype, dict[str, float]] = {
    "fp32": {"loss_error": 1e-5, "gradient_error": 1e-5},
    "bf16": {"loss_error": 1e-4, "gradient_error": 1e-3},
    "fp16": {"loss_error": 1e-4, "gradient_error": 1e-3},
}
LEFT_OUT = 37  # anchors, so that the last tile is ragged


class Truth:
    """The exact answer at one size, and how far from it an answer may be.

    Attributes:
        inputs: The operands, prepared as above.
        plain: Errors of the plain formula.
        allowed: The larger of these and `HAIR`.
    """

    def __init__(self, inputs: Inputs, dtype: Dtype) -> None:
        self.inputs = inputs.with_embeddings(DTYPES[dtype], torch.float32)
        self._exact = exact_step(self.inputs)
        self.plain = self.errors(step(plain_loss, self.inputs))
        self.allowed = {name: max(self.plain[name], HAIR[dtype][name]) for name in self.plain}

    def errors(self, found: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Compare loss and gradient with the exact answer."""
        return errors(found, self._exact)

    def allows(self, found: dict[str, float]) -> bool:
        """Return whether errors are small enough; those that are not numbers are not."""
        return all(found[name] <= self.allowed[name] for name in self.allowed)


def check(problem: Problem, inputs: Inputs) -> list[dict]:
    """Compare "triton" with the truth: as given, and masked over a ragged number of anchors."""
    rows = []
    for case, given in (
        ("all anchors", inputs),
        ("masked, ragged", inputs.masked(max(1, problem.n - LEFT_OUT))),
    ):
        truth = Truth(given, problem.dtype)
        found = truth.errors(step(kernel_loss("triton"), truth.inputs))
        rows.append(
            {
                "case": case,
                "K": len(given.student_anchors),
                "fused": found,
                "plain": truth.plain,
                "allowed": truth.allowed,
                "passed": truth.allows(found),
            }
        )
    return rows


def by_plan(plan: Plan, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Evaluate loss and student gradient by a given plan, without autograd."""
    from distill.kernels.fused.scan import FusedScan
    from distill.kernels.scan import divergence

    scan = FusedScan(
        *(tensor.detach() for tensor in inputs.tensors[:2]),
        *inputs.tensors[2:],
        temperatures=(TEMPERATURE, TEMPERATURE),
        self_mask=inputs.self_mask,
        plan=plan,
    )
    gradient = scan.gradient(scan.statistics[:2])
    return divergence(scan.statistics), gradient / (len(gradient) * TEMPERATURE)
