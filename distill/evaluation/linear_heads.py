"""Linear classifiers on standardized embeddings, trained by SGD or fitted by L-BFGS.

Rows (CompRess, NeurIPS 2020) are L2-normalized, centered and divided by the standard deviation of
the training rows. As in the published program the variance is the unbiased one and `EPSILON` is
added to it, which matters: a row of unit norm has a variance of at most 1 / D per dimension.
Embeddings may lie on disk in any floating dtype; they are read in chunks or by index, and the
standardized rows are kept only where they fit into memory.

SGD trains G heads on the same batches. They are one tensor (G, C, D), so that a batch is read and
multiplied once for all of them; each head equals one that was trained alone, up to rounding. All
start from the same weights. The step is PyTorch's SGD written out, since learning rate and weight
decay differ by head:

    gradient = d cross-entropy / d weight + weight decay x weight
    velocity = momentum x velocity + gradient
    weight   = weight - learning rate x velocity

Published setting: learning rate 0.01, momentum 0.9, weight decay 1e-4 (of the bias too), batches of
256, 40 epochs, learning rate x 0.1 after 15 and after 30. The published program embeds a random
view (random resized crop and flip) of every image at every step: `augmented_batches`.

`fit_logistic` minimizes by scikit-learn's L-BFGS, for one head after the other:

    mean cross-entropy + penalty / 2 x |weight|^2      (the bias is not penalized)

Shapes: N rows, B rows of a batch, D width, G heads, C classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.data.images import Images
from distill.data.loader import Batch, TrainingViews, training_loader
from distill.data.views import training_view
from distill.data.workers import guarded_batches
from distill.device import autocast, free_memory
from distill.embeddings.embed import InferenceConfig
from distill.embeddings.search import Rows
from distill.errors import DistillError
from distill.models.networks import EmbeddingNetwork
from distill.terminal import progress_bar

EPSILON = 1e-5
_CHUNK_BYTES = 64 * 2**20  # of float32 rows that are worked on at a time
_SHARE_OF_MEMORY = 0.3  # that standardized rows may take
_LOGITS_AT_ONCE = 2**24
_TOP = 5


@dataclass(frozen=True)
class Standardizer:
    """Per-dimension statistics of training rows of unit norm.

    Attributes:
        mean: (D,) float32.
        scale: (D,) float32 factor; 0 for a dimension that is constant in training, so that it is
            ignored.
    """

    mean: Tensor
    scale: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Normalize and standardize rows (B, D) of any floating dtype, to float32 (B, D)."""
        return (unit_norm(rows) - self.mean) * self.scale


def fit_standardizer(features: Rows, rows: np.ndarray, *, device: torch.device) -> Standardizer:
    """Return the statistics of some rows, read in chunks in two passes.

    Args:
        features: (N, D), any scale and floating dtype, finite.
        rows: Which of them, at least one.
        device: Where the statistics lie.
    """
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=device)
    for chunk in chunks(features, rows, device=device):
        total += unit_norm(chunk).double().sum(0)
    mean = total / len(rows)
    squares = torch.zeros_like(mean)
    for chunk in chunks(features, rows, device=device):
        squares += (unit_norm(chunk).double() - mean).square().sum(0)
    variance = squares / max(len(rows) - 1, 1)
    # The rounding of float32 rows around a constant is not a variance.
    is_constant = variance <= (1e-6 * mean).square()
    scale = (variance + EPSILON).rsqrt().masked_fill(is_constant, 0.0)
    return Standardizer(mean.float(), scale.float())


class StandardizedRows:
    """Selected rows of a set of embeddings, standardized, by position in the selection.

    They are computed once where they fit into memory on the device, else batch by batch, with the
    same result.

    Args:
        features: (N, D), any scale and floating dtype, finite.
        rows: The selected row numbers.
        standardizer: On `device`.
        device: Where the standardized rows are returned.
    """

    def __init__(
        self,
        features: Rows,
        rows: np.ndarray,
        standardizer: Standardizer,
        *,
        device: torch.device,
    ) -> None:
        self.features = features
        self.rows = rows
        self.standardizer = standardizer
        self.device = device
        width = features.shape[1]
        fits = 4 * len(rows) * width <= _SHARE_OF_MEMORY * free_memory(device)
        self._all = torch.empty(len(rows), width, device=device) if fits else None
        if self._all is not None:
            end = 0
            for chunk in chunks(features, rows, device=device):
                self._all[end : end + len(chunk)] = standardizer(chunk)
                end += len(chunk)

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, places: np.ndarray) -> Tensor:
        """Return the rows at some positions, float32 (B, D)."""
        if self._all is not None:
            return self._all[torch.from_numpy(places).to(self.device)]
        return self.standardizer(gathered(self.features, self.rows[places], device=self.device))


def unit_norm(rows: Tensor) -> Tensor:
    """Scale rows (B, D) to unit norm, float32; rows of zeros stay."""
    rows = rows.float()
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)


def chunks(features: Rows, rows: np.ndarray, *, device: torch.device) -> Iterator[Tensor]:
    """Yield the chosen rows in order, as many at a time as stay small."""
    at_once = max(1, _CHUNK_BYTES // (4 * max(1, features.shape[1])))
    for start in range(0, len(rows), at_once):
        yield gathered(features, rows[start : start + at_once], device=device)


def gathered(features: Rows, rows: np.ndarray, *, device: torch.device) -> Tensor:
    """Copy rows by number to the device, in their own dtype."""
    return torch.from_numpy(np.ascontiguousarray(features[rows])).to(device)


def require_finite(features: Rows) -> None:
    """Refuse embeddings of which a row is not finite; reads them in chunks.

    Raises:
        DistillError: Saying how many are not.
    """
    everything = chunks(features, np.arange(len(features)), device=torch.device("cpu"))
    num_bad = sum(int((~chunk.float().norm(dim=1).isfinite()).sum()) for chunk in everything)
    if num_bad:
        raise DistillError(
            f"{num_bad} of {len(features)} embeddings are not finite; the network's weights are "
            "damaged or its training diverged"
        )


class HeadBatch(NamedTuple):
    """The batch of a training step.

    Attributes:
        epoch: From 0.
        rows: Standardized embeddings, float32 (B, D).
        labels: int64 (B,), 0..C-1, on the device of `rows`.
    """

    epoch: int
    rows: Tensor
    labels: Tensor


@dataclass(frozen=True)
class HeadSetting:
    """Hyperparameters of one head.

    Attributes:
        learning_rate: Of the first epoch; positive and finite.
        weight_decay: At least 0 and finite.
    """

    learning_rate: float = 0.01
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class LinearSchedule:
    """Hyperparameters that all heads share.

    Attributes:
        num_epochs: Over the training rows.
        batch_size: Rows of a step.
        decay_epochs: After how many epochs the learning rate is multiplied by `decay_factor`.
        decay_factor: Of the learning rate.
        momentum: Of SGD.
    """

    num_epochs: int = 40
    batch_size: int = 256
    decay_epochs: tuple[int, ...] = (15, 30)
    decay_factor: float = 0.1
    momentum: float = 0.9

    def factor(self, epoch: int) -> float:
        """Return the factor on the learning rate in an epoch, counted from 0."""
        return self.decay_factor ** sum(epoch >= end for end in self.decay_epochs)


PUBLISHED_SETTING = HeadSetting()
PUBLISHED_SCHEDULE = LinearSchedule()


@dataclass(frozen=True)
class LinearHeads:
    """G linear classifiers.

    Attributes:
        weight: (G, C, D) float32.
        bias: (G, C) float32.
    """

    weight: Tensor
    bias: Tensor

    def logits(self, rows: Tensor) -> Tensor:
        """Return (B, G, C) for standardized rows (B, D), by one matrix product."""
        products = rows @ self.weight.flatten(0, 1).T
        return products.unflatten(1, self.bias.shape) + self.bias


def initial_heads(
    num_heads: int, *, num_classes: int, dim: int, seed: int, device: torch.device
) -> LinearHeads:
    """Return heads with the same weights, uniform in +-1 / sqrt(D) as PyTorch's linear layer.

    The numbers are drawn on the CPU, so that they do not depend on the device.
    """
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(dim)
    weight = torch.empty(num_classes, dim).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(num_classes).uniform_(-bound, bound, generator=generator)
    return LinearHeads(
        weight.to(device).repeat(num_heads, 1, 1), bias.to(device).repeat(num_heads, 1)
    )


@torch.no_grad()
def train_heads(
    heads: LinearHeads,
    settings: Sequence[HeadSetting],
    batches: Iterable[HeadBatch],
    schedule: LinearSchedule,
) -> LinearHeads:
    """Train heads in place, one with each setting, and return them.

    A head whose learning rate is too large ends with weights that are not finite; the other heads
    are not affected.

    Args:
        heads: G heads to start from.
        settings: G settings.
        batches: All batches of all epochs.
        schedule: Gives momentum and learning rate decay; epochs and batch size are those of
            `batches`.
    """
    assert len(settings) == len(heads.weight)
    rates = [setting.learning_rate for setting in settings]
    learning_rate = torch.tensor(rates, device=heads.weight.device)
    decays = [setting.weight_decay for setting in settings]
    weight_decay = torch.tensor(decays, device=heads.weight.device)
    velocities = torch.zeros_like(heads.weight), torch.zeros_like(heads.bias)
    for batch in batches:
        step_rate = learning_rate * schedule.factor(batch.epoch)
        for parameter, velocity, gradient in zip(
            (heads.weight, heads.bias), velocities, _gradients(heads, batch), strict=True
        ):
            per_head = (-1,) + (1,) * (parameter.ndim - 1)
            gradient.add_(weight_decay.view(per_head) * parameter)
            velocity.mul_(schedule.momentum).add_(gradient)
            parameter.sub_(step_rate.view(per_head) * velocity)
    return heads


def _gradients(heads: LinearHeads, batch: HeadBatch) -> tuple[Tensor, Tensor]:
    """Return the gradients of the mean cross-entropy: (softmax - one hot) / B, times the rows."""
    surplus = heads.logits(batch.rows).softmax(dim=2)  # (B, G, C)
    images = torch.arange(len(batch.labels), device=batch.labels.device)
    surplus[images, :, batch.labels] -= 1
    surplus /= len(batch.labels)
    weight = (surplus.flatten(1).T @ batch.rows).view_as(heads.weight)
    return weight, surplus.sum(0)


def fit_logistic(
    features: Rows,
    labels: np.ndarray,
    rows: np.ndarray,
    *,
    num_classes: int,
    penalties: Sequence[float],
    max_iterations: int = 200,
) -> tuple[LinearHeads, Standardizer]:
    """Fit a logistic regression for each penalty, each fit starting where the one before ended.

    All rows are held in memory on the CPU. A fit ends after `max_iterations`, which weak penalties
    on separable rows reach.

    Args:
        features: (N, D), any scale, finite.
        labels: (N,) classes, 0..C-1.
        rows: The rows to fit to, of two classes or more.
        num_classes: C; a class without rows is never predicted.
        penalties: G positive numbers; from strong to weak is fastest.
        max_iterations: Of each fit.

    Returns:
        G heads and the standardizer of the rows, both on the CPU.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    cpu = torch.device("cpu")
    standardizer = fit_standardizer(features, rows, device=cpu)
    standardized = StandardizedRows(features, rows, standardizer, device=cpu)
    inputs, targets = standardized(np.arange(len(rows))).numpy(), labels[rows]
    is_binary = len(np.unique(targets)) == 2
    model: Any = LogisticRegression(max_iter=max_iterations, warm_start=True, tol=1e-5)
    weight = torch.zeros(len(penalties), num_classes, inputs.shape[1])
    bias = torch.full((len(penalties), num_classes), -1e9)  # of a class without rows
    for head, penalty in enumerate(penalties):
        # Of two classes scikit-learn has one weight, their difference: half of the penalty.
        model.C = (2 if is_binary else 1) / (penalty * len(rows))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(inputs, targets)
        weight_of, bias_of = model.coef_, model.intercept_
        if is_binary:
            weight_of, bias_of = np.concatenate([0 * weight_of, weight_of]), [0.0, *bias_of]
        weight[head, model.classes_] = torch.as_tensor(weight_of, dtype=torch.float32)
        bias[head, model.classes_] = torch.as_tensor(bias_of, dtype=torch.float32)
    return LinearHeads(weight, bias), standardizer


@dataclass(frozen=True)
class ClassScores:
    """Accuracy and loss of a classifier on some images.

    Attributes:
        accuracy: Share of images that are classified correctly, as a fraction of 1.
        top5_accuracy: Share whose class is among the five most likely ones; None with five classes
            or fewer, where it is always 1.
        per_class: (C,) float64 accuracy on the images of each class, NaN for a class without any.
        loss: Mean cross-entropy in nats; infinite for weights that are not finite.
    """

    accuracy: float
    top5_accuracy: float | None
    per_class: np.ndarray
    loss: float


@torch.no_grad()
def score_heads(
    heads: LinearHeads, rows: StandardizedRows, labels: np.ndarray
) -> list[ClassScores]:
    """Score G heads on standardized rows, in chunks.

    Args:
        heads: Logits that are not finite count as wrong.
        rows: N rows, at least one.
        labels: (N,) classes, 0..C-1.

    Returns:
        G scores.
    """
    num_heads, num_classes = heads.bias.shape
    hits, top_hits = np.empty((2, num_heads, len(rows)), dtype=bool)
    losses = np.empty((num_heads, len(rows)))
    at_once = max(1, _LOGITS_AT_ONCE // heads.bias.numel())
    for start in range(0, len(rows), at_once):
        places = np.arange(start, min(start + at_once, len(rows)))
        logits = heads.logits(rows(places)).float()
        target = torch.from_numpy(labels[places].astype(np.int64)).to(logits.device)
        target = target[:, None].expand(logits.shape[:2])
        finite = logits.isfinite().all(dim=2)
        logits = logits.nan_to_num(0.0, 0.0, 0.0)
        first = logits.topk(min(_TOP, num_classes), dim=2).indices
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        hits[:, places] = ((logits.argmax(dim=2) == target) & finite).T.cpu()
        top_hits[:, places] = ((first == target[..., None]).any(dim=2) & finite).T.cpu()
        losses[:, places] = loss.view_as(finite).masked_fill(~finite, torch.inf).T.double().cpu()
    images = np.bincount(labels, minlength=num_classes)
    scores = []
    for hit, top_hit, head_losses in zip(hits, top_hits, losses, strict=True):
        per_class = np.full(num_classes, np.nan)
        counts = np.bincount(labels, weights=hit, minlength=num_classes)
        np.divide(counts, images, out=per_class, where=images > 0)
        top5 = float(top_hit.mean()) if num_classes > _TOP else None
        scores.append(ClassScores(float(hit.mean()), top5, per_class, float(head_losses.mean())))
    return scores


def shuffled_batches(
    rows: StandardizedRows, labels: np.ndarray, schedule: LinearSchedule, *, seed: int
) -> Iterator[HeadBatch]:
    """Yield all batches of all epochs, in an order that depends on seed and epoch alone.

    Args:
        rows: N standardized rows.
        labels: (N,) classes, 0..C-1.
        schedule: Its epochs and batch size.
        seed: From 0.
    """
    targets = torch.from_numpy(labels.astype(np.int64)).to(rows.device)
    for epoch in range(schedule.num_epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        for start in range(0, len(rows), schedule.batch_size):
            # Sorted, so that a memory map is read in order.
            places = np.sort(order[start : start + schedule.batch_size])
            yield HeadBatch(epoch, rows(places), targets[places])


def augmented_batches(
    network: EmbeddingNetwork,
    images: Images,
    index: np.ndarray,
    standardizer: Standardizer,
    inference: InferenceConfig,
    *,
    augmentation: str,
    schedule: LinearSchedule = PUBLISHED_SCHEDULE,
    seed: int = 0,
) -> Iterator[HeadBatch]:
    """Yield all batches of all epochs, of a new random view of every image in every epoch.

    A view follows from (seed, epoch, image), as in training. Nothing is kept: 40 epochs embed every
    image 40 times.

    Args:
        network: Frozen, on the device of `inference`; its mode is restored after the batches.
        images: The training images, with labels.
        index: (N,) the images to learn from.
        standardizer: With the statistics of the evaluation views.
        inference: Device, precision, workers; the batch size is the schedule's.
        augmentation: As `distill.data.views.training_view` knows them.
        schedule: Epochs and batch size.
        seed: Of views and order, from 0.

    Raises:
        BadImageError: From `inference.on_bad_images`.
    """
    view = training_view(
        network.input.image_size,
        augmentation,
        crop_fraction=network.input.crop_fraction,
        interpolation=network.input.interpolation,
    )
    views = TrainingViews(images, index, view, seed=seed)

    def batches() -> Iterable[Batch]:
        return training_loader(
            views,
            batch_size=schedule.batch_size,
            num_epochs=schedule.num_epochs,
            num_workers=inference.num_workers,
        )

    device, was_training = inference.device, network.training
    network.eval()
    try:
        total = schedule.num_epochs * len(index)
        with progress_bar(total, description="linear, augmented") as bar:
            for batch in guarded_batches(batches):
                if batch.bad and inference.on_bad_images is not None:
                    inference.on_bad_images(batch.bad)
                bar.update(len(batch.index) + len(batch.bad))
                if len(batch.index):
                    with torch.no_grad(), autocast(device, inference.precision):
                        embedded = network(batch.view.to(device))
                    yield HeadBatch(batch.epoch, standardizer(embedded), batch.label.to(device))
    finally:
        network.train(was_training)
