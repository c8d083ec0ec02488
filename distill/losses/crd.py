"""CRD: an image's embeddings in teacher and student find each other among many other images'.

Source: Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020, with the noise
contrastive estimation of the authors' program. Both embeddings go through linear maps to D
dimensions and are scaled to unit norm. Each side has a memory with one row for every training
image. For image i and m other images j, drawn uniformly, with replacement,

    P(j) = exp(s_i . M_t[j] / tau) / Z_s,    Pn = 1/N,
    loss_s = (1/B) sum_i [ -log P(i) / (P(i) + m Pn) - sum_j log m Pn / (P(j) + m Pn) ],

and loss_t the same with t_i and M_s; the loss is their sum. Z is N times the mean of the
exponentials of the first batch, and then stays. After the step the memories follow,
M[i] <- unit(momentum M[i] + (1 - momentum) embedding).

Departures: negatives are drawn by instance, never the image itself, since there are no labels to
draw by; logarithms are taken of exponents, without the program's 1e-7 in the denominators.
Limits: memories of N x D float32 for each side, on every rank; B x N products for each side.
Shapes: B rows of all ranks, Dt and Ds widths, D of the linear maps, N images trained on.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.config import AtLeast1, Positive, Share
from distill.errors import DistillError
from distill.kernels.anchor_kl import check_temperature
from distill.losses.base import (
    BaselineOptions,
    BuildContext,
    DistillationLoss,
    MemoryNeed,
    MethodFacts,
    check_counts,
    check_rows,
    register_method,
    required,
    unit_rows,
)

PUBLISHED_NUM_NEGATIVES = 16_384


@register_method("crd", summary="CRD: contrast with a memory of all images (ICLR 2020)")
class CRD(DistillationLoss):
    """Noise contrastive estimation against memories of both sides.

    Args:
        teacher_dim: Dt.
        student_dim: Ds.
        image_index: (N,) int64, positions in the full training set of the images that are trained
            on, each once; at least 2.
        head_dim: D; 128 as published.
        num_negatives: m; 16,384 as published.
        temperature: tau > 0; .07 as published.
        memory_momentum: Share of the old embedding in a memory, in [0, 1]; .5 as published.
        seed: Of the first memories and of the negatives.

    Raises:
        DistillError: A number out of its range.

    Example:
        >>> loss = CRD(8, 4, image_index=torch.arange(100), head_dim=16, num_negatives=32)
        >>> teacher, student, index = torch.randn(16, 8), torch.randn(16, 4), torch.arange(16)
        >>> loss(teacher, student, index).shape
        torch.Size([])
        >>> loss.after_step()
    """

    @dataclass(frozen=True)
    class Options(BaselineOptions):
        """Options of `crd`."""

        temperature: Positive = 0.07
        """Temperature of both directions."""
        head_dim: AtLeast1 = 128
        """Width of the linear layers after teacher and student."""
        num_negatives: AtLeast1 | None = None
        """Other images that an image is compared with; None: 16,384, or as many as there are."""
        memory_momentum: Share = 0.5
        """Share of the old embedding in the memory of an image."""

    place: Tensor
    teacher_memory: Tensor
    student_memory: Tensor
    log_z: Tensor

    def __init__(
        self,
        teacher_dim: int,
        student_dim: int,
        image_index: Tensor,
        *,
        head_dim: int = 128,
        num_negatives: int = 16_384,
        temperature: float = 0.07,
        memory_momentum: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_counts(teacher_dim=teacher_dim, student_dim=student_dim, head_dim=head_dim)
        check_counts(num_negatives=num_negatives)
        check_temperature("temperature", temperature)
        if not 0 <= memory_momentum <= 1:
            raise DistillError(f"memory_momentum is {memory_momentum}; it must be between 0 and 1")
        if len(image_index) < 2:
            raise DistillError(f"CRD got {len(image_index)} images; it needs another one to differ")
        self.num_images, self.num_negatives = len(image_index), num_negatives
        self.temperature, self.memory_momentum, self.seed = temperature, memory_momentum, seed
        self.teacher_head = nn.Linear(teacher_dim, head_dim)
        self.student_head = nn.Linear(student_dim, head_dim)
        self.register_buffer("place", _places(image_index), persistent=False)
        generator, bound = torch.Generator().manual_seed(seed), math.sqrt(3 / head_dim)
        for name in ("teacher_memory", "student_memory"):  # rows of about unit norm, as published
            rows = torch.empty(self.num_images, head_dim)
            self.register_buffer(name, rows.uniform_(-bound, bound, generator=generator))
        self.register_buffer("log_z", torch.zeros(2))
        self._num_draws = 0
        self._to_remember: tuple[Tensor, Tensor, Tensor] | None = None

    @classmethod
    def resolve(cls, options: Options, facts: MethodFacts) -> Options:
        """Fill in the number of negatives; see `DistillationLoss`."""
        if options.num_negatives is not None:
            return options
        number = min(PUBLISHED_NUM_NEGATIVES, facts.num_images - 1)
        return replace(options, num_negatives=number)

    @classmethod
    def memory_needed(cls, options: Options, context: BuildContext) -> MemoryNeed:
        """Return what both memories take; see `DistillationLoss`."""
        number = len(context.images)
        num_bytes = 2 * number * options.head_dim * torch.float32.itemsize
        return MemoryNeed(num_bytes, f"memories of {number:,} images", "lower --head-dim")

    @classmethod
    def build(cls, options: Options, context: BuildContext) -> CRD:
        """Build it; see `DistillationLoss`."""
        assert options.num_negatives is not None
        return cls(
            context.teacher_dim,
            context.student_dim,
            torch.from_numpy(context.images),
            head_dim=options.head_dim,
            num_negatives=options.num_negatives,
            temperature=options.temperature,
            memory_momentum=options.memory_momentum,
            seed=context.seed,
        )

    def forward(
        self,
        teacher: Tensor,
        student: Tensor,
        index: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Return the loss; see `DistillationLoss`, of which label is not used.

        The first call fixes the normalization constants.
        """
        check_rows(teacher, student)
        place = self.place[required(index, "index", "crd")]
        of_teacher = unit_rows(self.teacher_head(teacher))
        of_student = unit_rows(self.student_head(student))
        chosen = torch.cat([place[:, None], self._draw(place)], dim=1)
        logits = torch.stack(
            [
                (of_student @ self.teacher_memory.T).gather(1, chosen),
                (of_teacher @ self.student_memory.T).gather(1, chosen),
            ]
        )
        logits = logits / self.temperature
        if self._num_draws == 1:
            self.log_z.copy_(_log_normalizer(logits.detach(), self.num_images))
        self._to_remember = (place, of_teacher.detach(), of_student.detach())
        log_noise = math.log(self.num_negatives / self.num_images)
        excess = logits - self.log_z[:, None, None] - log_noise
        positive, negatives = excess[:, :, 0], excess[:, :, 1:]
        return (F.softplus(-positive) + F.softplus(negatives).sum(2)).mean(1).sum()

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the memories follow the embeddings of the last batch."""
        if self._to_remember is None:
            return
        place, *new = self._to_remember
        share = self.memory_momentum
        for memory, rows in zip((self.teacher_memory, self.student_memory), new, strict=True):
            memory[place] = unit_rows(share * memory[place] + (1 - share) * rows)
        self._to_remember = None

    def get_extra_state(self) -> dict[str, Any]:
        """Return how often negatives were drawn, which says what is drawn next."""
        return {"num_draws": self._num_draws}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        self._num_draws = state["num_draws"]

    def _draw(self, place: Tensor) -> Tensor:
        """Draw the rows of m other images for each of B images; the same on every rank."""
        key = f"{self.seed}/{self._num_draws}".encode()
        self._num_draws += 1
        number = int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "little")
        generator = torch.Generator(place.device).manual_seed(number)
        shape = (len(place), self.num_negatives)
        drawn = torch.randint(self.num_images - 1, shape, generator=generator, device=place.device)
        return drawn + (drawn >= place[:, None])  # the image itself is stepped over


def _places(image_index: Tensor) -> Tensor:
    """Return the memories' row of every image by its index; -1 for images not trained on."""
    place = torch.full((int(image_index.max()) + 1,), -1, dtype=torch.int64)
    place[image_index] = torch.arange(len(image_index))
    return place


def _log_normalizer(logits: Tensor, num_images: int) -> Tensor:
    """Return log(N mean exp) of each direction, (2,)."""
    flat = logits.flatten(1)
    return flat.logsumexp(1) + math.log(num_images / flat.shape[1])
