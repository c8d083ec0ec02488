"""How far apart a network's embeddings lie while it is trained, from the batches it sees anyway.

A network that says the same of every image has collapsed: its loss may still be finite and smooth,
and nothing is learnt any more. Three numbers show it, of the unit rows u of the last batch:

    spread           sqrt(mean_i |u_i - mean u|^2), in [0, 1]; 0 says the same of every image, 1 has
                     directions that cancel. The root mean square over dimensions of the standard
                     deviation, times sqrt(D).
    effective_rank   exp(entropy of the covariance's eigenvalues, normalized to 1), in [1, D]: in
                     how many directions embeddings differ (Roy and Vetterli, The effective rank,
                     EUSIPCO 2007). At most one less than the rows.
    dead_units       share of dimensions that had one value for all images of each of the last ten
                     passes, such as a ReLU that never opens. Views of another size and parts of a
                     batch are passes of their own.

Deliberate limits: a training batch of the last step alone, so small batches bound the rank; over
ranks, a dimension that differs between ranks but within none counts as dead.

Shapes: B rows of the batch of all ranks, D width.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill import distributed
from distill.row_exchange import gather_rows, row_counts

DEAD_AFTER = 10  # passes
MAX_ROWS = 256  # of the effective rank, whose price is their cube
_SAME = 1e-6  # of the largest value: rounding is no difference


class EmbeddingSpread:
    """Looks at what a network returns in training; it neither runs it nor changes anything.

    A context manager: on leaving, the network is as before. Passes without gradient or in
    evaluation mode are not looked at.

    Args:
        network: Returns embeddings (b, D) of this rank's images.
    """

    def __init__(self, network: nn.Module) -> None:
        self._last: Tensor | None = None
        self._unvaried: Tensor | None = None
        self._num_passes = 0
        self._hook = network.register_forward_hook(self._see)

    def __enter__(self) -> EmbeddingSpread:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hook.remove()

    def _see(self, network: nn.Module, _: Any, embeddings: Tensor) -> None:
        if network.training and torch.is_grad_enabled():
            self.add(embeddings)

    @torch.no_grad()
    def add(self, embeddings: Tensor) -> None:
        """Look at a batch's embeddings, b x D; b may be 0."""
        self._last = embeddings.detach()
        if self._unvaried is None:
            self._unvaried = torch.zeros(
                embeddings.shape[1], dtype=torch.int64, device=embeddings.device
            )
        self._num_passes += 1
        unvaried = self._unvaried.to(embeddings.device)  # a checkpoint's lies on the CPU
        self._unvaried = (unvaried + 1).masked_fill(_varies(self._last), 0)

    def state_dict(self) -> dict[str, Any]:
        """Return what later numbers depend on, the same on every rank; all call it together."""
        if self._unvaried is None:
            return {}
        unvaried = distributed.all_gather(self._unvaried[None]).amin(0)  # all that `read` uses
        return {"unvaried": unvaried, "num_batches": self._num_passes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if state:
            self._unvaried, self._num_passes = state["unvaried"], state["num_batches"]

    @torch.no_grad()
    def read(self) -> dict[str, float]:
        """Return the three numbers, the same on every rank; all ranks call it together.

        Returns:
            Nothing before two rows were seen, or when they are not finite.
        """
        if self._last is None or self._unvaried is None:
            return {}
        counts = row_counts(len(self._last))
        if sum(counts) < 2:
            return {}
        rows = gather_rows(self._last.float(), counts)
        if not rows.isfinite().all():
            return {}
        unit = F.normalize(rows)
        unvaried = distributed.all_gather(self._unvaried[None]).amin(0)
        dead = unvaried >= min(DEAD_AFTER, self._num_passes)
        return {
            "spread": (unit - unit.mean(0)).square().sum(1).mean().sqrt().item(),
            "effective_rank": effective_rank(unit[:MAX_ROWS]),
            "dead_units": dead.float().mean().item(),
        }


def effective_rank(rows: Tensor) -> float:
    """Return exp(entropy) of the normalized eigenvalues of the rows' covariance.

    Args:
        rows: B x D, finite.

    Returns:
        From 1 to min(B - 1, D); 0 where rows do not differ.
    """
    centred = rows.double() - rows.double().mean(0)
    # B x B and D x D have the same eigenvalues but for zeros.
    gram = centred @ centred.T if len(rows) < rows.shape[1] else centred.T @ centred
    eigenvalues = torch.linalg.eigvalsh(gram.cpu()).clamp_min(0)
    total = eigenvalues.sum()
    if total <= len(rows) * _SAME**2:
        return 0.0
    return torch.special.entr(eigenvalues / total).sum().exp().item()


def _varies(rows: Tensor) -> Tensor:
    """Return which dimensions have more than one value, D."""
    if len(rows) == 0:
        return torch.zeros(rows.shape[1], dtype=torch.bool, device=rows.device)
    low, high = rows.aminmax(dim=0)
    return high - low > _SAME * torch.maximum(high, -low).amax()
