"""Multinomial logistic regression by L-BFGS on frozen embeddings: a fast check without a schedule.

Rows are normalized and standardized as for `distill.evaluation.linear`; what is minimized is

    mean cross-entropy + penalty / 2 x |weight|^2      (the bias is free)

by SciPy's L-BFGS-B, the solver behind scikit-learn's LogisticRegression, with whose strength
C = 1 / (penalty x N) the minimum is the same. Loss and gradient are summed over parts of the rows
on the device, so that memory maps and GPUs serve. The penalty is chosen on held-out training rows,
from strong to weak, each search starting where the one before ended. Deliberate limit: a search
ends after `MAX_ITERATIONS`, which weak penalties on separable rows reach.

Shapes: N training rows, B rows of a part, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.evaluation.class_scores import ClassScores
from distill.evaluation.label_subsets import held_out_rows
from distill.evaluation.linear import LabelledEmbeddings, score_heads
from distill.evaluation.linear_heads import LinearHeads
from distill.evaluation.standardize import StandardizedRows, fit_standardizer

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
MAX_ITERATIONS = 200
_VALUES_AT_ONCE = 2**24  # of rows and of logits that a part holds


@dataclass(frozen=True)
class LogisticResult:
    """What logistic regression achieves on the validation images.

    Attributes:
        scores: On the validation images.
        penalty: The chosen one.
        held_out: Accuracy on held-out training rows, by penalty.
    """

    scores: ClassScores
    penalty: float
    held_out: dict[float, float]


def logistic_evaluation(
    data: LabelledEmbeddings,
    *,
    device: torch.device,
    rows: np.ndarray | None = None,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> LogisticResult:
    """Fit logistic regression to training rows and score it on the validation rows.

    Args:
        data: The embeddings.
        device: Where loss and gradient are computed.
        rows: The training rows to learn from; None: all.
        penalties: To choose from, positive; one alone is taken without a choice.
        seed: Of what is held out, from 0.

    Raises:
        DistillError: Rows of one class, or rows that cannot be split to choose a penalty.
    """
    rows = data.rows(rows)
    held_out = _accuracies_held_out(data, rows, penalties, device, seed)
    penalty = max(held_out, key=lambda one: held_out[one]) if held_out else penalties[0]
    train, labels = _standardized(data, rows, device)
    heads = minimize(train, labels, penalty=penalty, num_classes=data.num_classes)
    everything = np.arange(len(data.val_labels))
    val = StandardizedRows(data.val_features, everything, train.standardizer, device=device)
    (scores,) = score_heads(heads, val, data.val_labels, num_classes=data.num_classes)
    return LogisticResult(scores, penalty, held_out)


def _accuracies_held_out(
    data: LabelledEmbeddings,
    rows: np.ndarray,
    penalties: Sequence[float],
    device: torch.device,
    seed: int,
) -> dict[float, float]:
    """Fit to a part of the rows with each penalty, the strongest first, and score on the rest."""
    if len(penalties) == 1:
        return {}
    fitted, held_out = held_out_rows(data.train_labels[rows], seed=seed)
    train, labels = _standardized(data, rows[fitted], device)
    rest = StandardizedRows(data.train_features, rows[held_out], train.standardizer, device=device)
    found: dict[float, float] = {}
    heads = None
    for penalty in sorted(penalties, reverse=True):
        heads = minimize(train, labels, penalty=penalty, num_classes=data.num_classes, start=heads)
        target = data.train_labels[rows[held_out]]
        (scores,) = score_heads(heads, rest, target, num_classes=data.num_classes)
        found[penalty] = scores.accuracy
    return found


def _standardized(
    data: LabelledEmbeddings, rows: np.ndarray, device: torch.device
) -> tuple[StandardizedRows, np.ndarray]:
    standardizer = fit_standardizer(data.train_features, rows, device=device)
    standardized = StandardizedRows(data.train_features, rows, standardizer, device=device)
    return standardized, data.train_labels[rows].astype(np.int64)


def minimize(
    rows: StandardizedRows,
    labels: np.ndarray,
    *,
    penalty: float,
    num_classes: int,
    start: LinearHeads | None = None,
    max_iterations: int = MAX_ITERATIONS,
) -> LinearHeads:
    """Minimize the mean cross-entropy plus penalty / 2 x |weight|^2.

    Args:
        rows: N standardized rows.
        labels: (N,) int64 classes, 0..C-1.
        penalty: Positive.
        num_classes: C.
        start: One head to start from; None: zeros.
        max_iterations: After which the search ends.

    Returns:
        One head, G = 1, float32 on the device of the rows.
    """
    from scipy.optimize import minimize as scipy_minimize

    shape = (num_classes, rows.features.shape[1])

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = _unpacked(flat, shape, rows.device)
        loss, gradients = _loss_and_gradients(weight, bias, rows, labels)
        strength = float(weight.double().square().sum())
        gradients[0].add_(weight, alpha=penalty)
        return loss + penalty / 2 * strength, _packed(*gradients)

    initial = np.zeros(shape[0] * (shape[1] + 1))
    if start is not None:
        initial = _packed(start.weight[0], start.bias[0])
    options = {"maxiter": max_iterations, "gtol": 1e-5, "ftol": 1e-8}
    found = scipy_minimize(objective, initial, jac=True, method="L-BFGS-B", options=options)
    weight, bias = _unpacked(found.x, shape, rows.device)
    return LinearHeads(weight[None], bias[None])


@torch.no_grad()
def _loss_and_gradients(
    weight: Tensor, bias: Tensor, rows: StandardizedRows, labels: np.ndarray
) -> tuple[float, tuple[Tensor, Tensor]]:
    """Return the mean cross-entropy and its gradients, summed over parts of the rows."""
    at_once = max(1, _VALUES_AT_ONCE // max(weight.shape))
    gradients = torch.zeros_like(weight), torch.zeros_like(bias)
    loss = 0.0
    for start in range(0, len(rows), at_once):
        places = np.arange(start, min(start + at_once, len(rows)))
        x, y = rows(places), torch.from_numpy(labels[places]).to(weight.device)
        log_shares = (x @ weight.T + bias).log_softmax(dim=1)
        loss += float(F.nll_loss(log_shares, y, reduction="sum").double())
        surplus = log_shares.exp()
        surplus[torch.arange(len(y), device=y.device), y] -= 1
        gradients[0].add_(surplus.T @ x)
        gradients[1].add_(surplus.sum(0))
    for gradient in gradients:
        gradient.div_(len(rows))
    return loss / len(rows), gradients


def _packed(weight: Tensor, bias: Tensor) -> np.ndarray:
    return torch.cat([weight.flatten(), bias]).double().cpu().numpy()


def _unpacked(
    flat: np.ndarray, shape: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    values = torch.from_numpy(flat).to(device, torch.float32)
    size = shape[0] * shape[1]
    return values[:size].view(shape), values[size:]
