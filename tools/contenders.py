"""The formulas that the benchmarks compare, their operands, and their errors.

The plain formula is what the authors of CompRess run every step: clone the bank, multiply all of it
with the embeddings, divide by the temperature, softmax both sides, take the KL divergence and let
autograd go back to the student. With 16-bit banks only its products are 16-bit, as under autocast.

Shapes: B batch, K anchors, D width (Dt teacher, Ds student).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.kernels.anchor_kl import anchor_kl

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TEMPERATURE = 0.04
# An excluded anchor's logit in the plain formula: no weight in a softmax, and finite, so that zero
# times its logarithm is zero.
_EXCLUDED = -1e4
_ANCHORS_AT_ONCE = 8192  # of a bank, while it is widened to float64
Shape = tuple[int, int, int, int]
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Inputs:
    """Operands of the loss; rows are unit, the student's embeddings want a gradient."""

    teacher: Tensor
    student: Tensor
    teacher_anchors: Tensor
    student_anchors: Tensor
    self_mask: tuple[Tensor, Tensor] | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings and banks in the order in which `anchor_kl` takes them."""
        return self.teacher, self.student, self.teacher_anchors, self.student_anchors

    def with_banks(self, dtype: torch.dtype) -> Inputs:
        """Return the same operands with banks of another dtype; one bank stays one."""
        bank = self.teacher_anchors.to(dtype)
        other = bank if self._one_bank else self.student_anchors.to(dtype)
        return replace(self, teacher_anchors=bank, student_anchors=other)

    def with_embeddings(self, *dtypes: torch.dtype) -> Inputs:
        """Return the same operands with embeddings rounded to each dtype in turn."""
        teacher, student = self.teacher, self.student.detach()
        for dtype in dtypes:
            teacher, student = teacher.to(dtype), student.to(dtype)
        return replace(self, teacher=teacher, student=student.requires_grad_())

    def masked(self, num_anchors: int) -> Inputs:
        """Return the first anchors only, of which every row excludes those of its own image."""
        B, device = len(self.student), self.student.device
        bank = self.teacher_anchors[:num_anchors]
        other = bank if self._one_bank else self.student_anchors[:num_anchors]
        anchor_index = torch.arange(num_anchors, device=device) % (3 * B) - B  # a third below 0
        mask = (torch.arange(B, device=device), anchor_index.clamp(min=-1))
        return replace(self, teacher_anchors=bank, student_anchors=other, self_mask=mask)

    @property
    def _one_bank(self) -> bool:
        return self.teacher_anchors is self.student_anchors


def make_inputs(
    shape: Shape, *, seed: int = 0, device: str = "cpu", one_bank: bool = False
) -> Inputs:
    """Draw unit rows in K / 100 clusters, cosines within a cluster 0.5 to 0.95.

    Args:
        shape: B, K, Dt, Ds.
        seed: Of the generator.
        device: Where they are drawn and stay; devices draw different numbers.
        one_bank: Both sides read the teacher's bank (Dt = Ds). Otherwise a third of the student's
            anchors sit in a wrong cluster.
    """
    B, K, Dt, Ds = shape
    generator = torch.Generator(device).manual_seed(seed)
    num_clusters = max(2, K // 100)
    cluster = torch.randint(num_clusters, (B + K,), generator=generator, device=device)
    confused = torch.rand(B + K, generator=generator, device=device) < 1 / 3
    confused[:B] = False
    guess = torch.randint(num_clusters, (B + K,), generator=generator, device=device)
    if one_bank:
        rows = _clustered_rows(torch.cat([cluster[:B], cluster]), num_clusters, Dt, generator)
        student = rows[:B].clone().requires_grad_()
        bank = rows[2 * B :]
        return Inputs(rows[B : 2 * B].clone(), student, bank, bank)
    teacher = _clustered_rows(cluster, num_clusters, Dt, generator)
    student = _clustered_rows(torch.where(confused, guess, cluster), num_clusters, Ds, generator)
    return Inputs(
        teacher[:B].clone(), student[:B].clone().requires_grad_(), teacher[B:], student[B:]
    )


def _clustered_rows(
    cluster: Tensor, num_clusters: int, width: int, generator: torch.Generator
) -> Tensor:
    """Return unit rows (N x D) around random centers, at cosines of 0.7 to 0.97 with them."""
    drawn = {"generator": generator, "device": cluster.device}
    centers = F.normalize(torch.randn(num_clusters, width, **drawn))
    rows = torch.empty(len(cluster), width, device=cluster.device)
    for start in range(0, len(cluster), 4096):
        members = cluster[start : start + 4096]
        spread = 0.25 + 0.75 * torch.rand(len(members), 1, **drawn)
        noise = F.normalize(torch.randn(len(members), width, **drawn))
        rows[start : start + 4096] = F.normalize(centers[members] + spread * noise)
    return rows


def plain_loss(
    teacher: Tensor,
    student: Tensor,
    teacher_anchors: Tensor,
    student_anchors: Tensor,
    self_mask: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Evaluate the plain formula; arguments as those of `anchor_kl`."""
    student_logits = _plain_logits(student, student_anchors)
    teacher_logits = _plain_logits(teacher, teacher_anchors)
    if self_mask is not None:
        excluded = self_mask[0][:, None] == self_mask[1]
        student_logits = student_logits.masked_fill(excluded, _EXCLUDED)
        teacher_logits = teacher_logits.masked_fill(excluded, _EXCLUDED)
    p = teacher_logits.softmax(1)
    return F.kl_div(student_logits.log_softmax(1), p, reduction="batchmean")


def _plain_logits(embeddings: Tensor, anchors: Tensor) -> Tensor:
    # The bank is cloned because it is overwritten in place before autograd comes back for it.
    products = torch.mm(anchors.clone(), embeddings.to(anchors.dtype).T).T
    return (products.float() / TEMPERATURE).contiguous()


def kernel_loss(implementation: str) -> Loss:
    """Return `anchor_kl` by an implementation, with the arguments of `plain_loss`."""

    def loss(*tensors: Tensor, self_mask: tuple[Tensor, Tensor] | None = None) -> Tensor:
        return anchor_kl(
            *tensors,
            teacher_temperature=TEMPERATURE,
            student_temperature=TEMPERATURE,
            self_mask=self_mask,
            implementation=implementation,
        )

    return loss


def step(loss: Loss, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Evaluate loss and student gradient."""
    value = loss(*inputs.tensors, self_mask=inputs.self_mask)
    (gradient,) = torch.autograd.grad(value, inputs.student)
    return value.detach(), gradient


@torch.no_grad()
def exact_step(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Evaluate loss (0-d) and student gradient (B x Ds) in float64, on the operands' device.

    It is implementation "reference" for banks of any size: they are widened a piece at a time. Five
    matrices of B x K float64 are held. Every row keeps at least one anchor.
    """
    t, s = (
        torch.cat([rows.double() @ part.double().T for part in bank.split(_ANCHORS_AT_ONCE)], 1)
        for rows, bank in (
            (inputs.teacher, inputs.teacher_anchors),
            (inputs.student, inputs.student_anchors),
        )
    )
    if inputs.self_mask is not None:
        excluded = inputs.self_mask[0][:, None] == inputs.self_mask[1]
        for logits in (t, s):
            logits.masked_fill_(excluded, -1e30)  # its exponential is exactly zero
    for logits in (t, s):
        logits.div_(TEMPERATURE).sub_(logits.logsumexp(1, keepdim=True))
    p = t.exp()
    loss = t.sub_(s).mul_(p).sum(1).mean()
    pieces = s.exp_().sub_(p).split(_ANCHORS_AT_ONCE, 1)
    parts = inputs.student_anchors.split(_ANCHORS_AT_ONCE)
    gradient = sum(piece @ part.double() for piece, part in zip(pieces, parts, strict=True))
    return loss, gradient / (len(p) * TEMPERATURE)


def errors(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Compare loss and gradient with the truth.

    Returns:
        `loss_error`, relative; `gradient_error`, the largest relative to the largest entry.
    """
    loss_error = (found[0].double() / exact[0] - 1).abs()
    gradient_error = (found[1].double() - exact[1]).abs().max() / exact[1].abs().max()
    return {"loss_error": loss_error.item(), "gradient_error": gradient_error.item()}
