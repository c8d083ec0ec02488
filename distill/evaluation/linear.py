"""Scores of classifiers on labeled rows: top-1, top-5, accuracy of each class, cross-entropy.

Shapes: B rows of a batch, G classifiers, C classes.

Which training images have a label, when few have: a share of every class, or a published list.

A share is class-balanced: every class gives its part of the images, rounded by largest remainders
so that the total is right, and at least one image. Images of a class are taken in an order that
follows from the seed alone, so that the 1 % of a seed lies in its 10 %. Deliberate limit: that one
share lies in another is certain from about twice the share on; of nearly equal shares (0.10 and
0.11) a class may give one image fewer to the larger.

Lists are those of SimCLR (Chen et al., ICML 2020): one file name a line, `n01440764_10026.JPEG`.

Shapes: N images, C classes.

Linear evaluation: how well one linear layer on frozen embeddings tells classes apart.

Protocol (CompRess, NeurIPS 2020): rows of unit norm, standardized with the training rows' mean and
variance (`distill.evaluation.linear_heads`), one linear layer, SGD (`distill.evaluation.
linear_heads`). What counts is the head after the last epoch: the published program names the best
epoch on the validation images, which choose nothing here. A sweep trains a head for each setting
at once on nine tenths of the training rows, chooses on the rest, and trains the chosen setting
anew on all rows beside the published one.

Shapes: N training rows, M validation rows, D width, C classes, G settings of a sweep.

Multinomial logistic regression by L-BFGS on frozen embeddings: a fast check without a schedule.

Rows are normalized and standardized as for `distill.evaluation.linear`; what is minimized is

    mean cross-entropy + penalty / 2 x |weight|^2      (the bias is free)

by SciPy's L-BFGS-B, the solver behind scikit-learn's LogisticRegression, with whose strength
C = 1 / (penalty x N) the minimum is the same. Loss and gradient are summed over parts of the rows
on the device, so that memory maps and GPUs serve. The penalty is chosen on held-out training rows,
from strong to weak, each search starting where the one before ended. Deliberate limit: a search
ends after `MAX_ITERATIONS`, which weak penalties on separable rows reach.

Shapes: N training rows, B rows of a part, D width, C classes.

What `distill linear` can be asked for, and what contradicts itself.

Linear heads on a student's embeddings under one job's options, and their numbers by name.

Measures linear classifiers on a trained student: all labels, few labels, inner layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distill import distributed
from distill.data.images import FolderImages, Images
from distill.data.sources import default_augmentation, drawn_by_class
from distill.device import require_memory
from distill.embeddings.cache import StoredEmbeddings
from distill.embeddings.embed import Embeddings
from distill.embeddings.search import Rows, require_labels, require_same_width
from distill.errors import DistillError
from distill.evaluation.base import EvaluationOptions, EvaluationResult, Subject, open_evaluation
from distill.evaluation.layers import LayerBackbone, layer_network
from distill.evaluation.linear_heads import (
    PUBLISHED_SCHEDULE,
    PUBLISHED_SETTING,
    AugmentedBatches,
    HeadBatch,
    HeadSetting,
    LinearHeads,
    LinearSchedule,
    StandardizedRows,
    Standardizer,
    fit_standardizer,
    initial_heads,
    require_finite,
    train_heads,
)
from distill.models.networks import prepare_for_device

_TOP = 5


@dataclass(frozen=True)
class ClassScores:
    """What a classifier achieves on some images.

    Attributes:
        accuracy: Share of images whose class it names, as a fraction of 1.
        top5_accuracy: Share whose class is among its first five; None with five classes or fewer,
            where it could not miss.
        per_class: (C,) float64 accuracy on the images of each class, NaN for a class without any.
        loss: Mean cross-entropy in nats; infinite for weights that are not finite.
    """

    accuracy: float
    top5_accuracy: float | None
    per_class: np.ndarray
    loss: float


@torch.no_grad()
def class_scores(
    batches: Iterable[tuple[Tensor, Tensor]], *, num_classes: int
) -> list[ClassScores]:
    """Score G classifiers.

    Args:
        batches: At least one pair of logits (B, G, C) and labels (B,) int64, 0..C-1.
        num_classes: C.

    Returns:
        G scores.
    """
    hits, top_hits, losses, labels = [], [], [], []
    for logits, label in batches:
        hit, top_hit, loss = _counted(logits.float(), label)
        hits.append(hit.cpu().numpy())
        top_hits.append(top_hit.cpu().numpy())
        losses.append(loss.double().cpu().numpy())
        labels.append(label.cpu().numpy())
    found = zip(*(np.concatenate(parts).T for parts in (hits, top_hits, losses)), strict=True)
    classes = np.concatenate(labels)
    return [
        _scores(hit, top_hit, float(loss.mean()), classes, num_classes)
        for hit, top_hit, loss in found
    ]


def _counted(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (B, G) hits, hits among five, and losses; what is not finite never hits."""
    finite = logits.isfinite().all(dim=2)
    logits = logits.nan_to_num(0.0, 0.0, 0.0)
    target = label[:, None].expand(logits.shape[:2])
    hit = (logits.argmax(dim=2) == target) & finite
    first = logits.topk(min(_TOP, logits.shape[2]), dim=2).indices
    top_hit = (first == target[..., None]).any(dim=2) & finite
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    return hit, top_hit, loss.view_as(finite).masked_fill(~finite, torch.inf)


def _scores(
    hit: np.ndarray, top_hit: np.ndarray, loss: float, labels: np.ndarray, num_classes: int
) -> ClassScores:
    images = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels, weights=hit, minlength=num_classes)
    per_class = np.full(num_classes, np.nan)
    np.divide(hits, images, out=per_class, where=images > 0)
    top5 = float(top_hit.mean()) if num_classes > _TOP else None
    return ClassScores(float(hit.mean()), top5, per_class, loss)


_SEVERAL = -1  # images of one file name


def class_balanced_subset(labels: np.ndarray, fraction: float, *, seed: int) -> np.ndarray:
    """Choose a share of every class.

    Args:
        labels: (N,) classes, at least 0.
        fraction: The share, above 0 and at most 1.
        seed: At least 0.

    Returns:
        Positions of the chosen images, int64, sorted: round(fraction N) of them, or more where
        every class gives its one.

    Raises:
        DistillError: `fraction` out of range.
    """
    if not 0 < fraction <= 1:
        raise DistillError(
            f"--labels is {fraction:g}, it must be a share above 0 and at most 1, as 0.01 for "
            "1 %, or a file of image names"
        )
    by_class, rank_in_class = drawn_by_class(labels, np.random.default_rng([seed, 0]))
    shares = _shares(np.bincount(labels), fraction, np.random.default_rng([seed, 1]))
    return np.sort(by_class[rank_in_class < shares[labels[by_class]]])


def _shares(counts: np.ndarray, fraction: float, generator: np.random.Generator) -> np.ndarray:
    """Distribute round(fraction N) over classes of sizes `counts`, at least one to each."""
    quotas = fraction * counts
    shares = np.maximum(np.floor(quotas).astype(np.int64), np.minimum(counts, 1))
    num_left = max(0, round(fraction * counts.sum()) - shares.sum())
    # Who was given its one instead of less has no remainder left: it comes last.
    order = np.lexsort((generator.random(len(counts)), shares - quotas))
    shares[order[:num_left]] += 1
    return shares


def held_out_rows(
    labels: np.ndarray, *, seed: int, fraction: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Split labeled images for choosing a setting, the same for the same seed.

    A class with one image keeps it for fitting.

    Args:
        labels: (N,) classes, at least 0.
        seed: At least 0.
        fraction: The share of every class to hold out.

    Returns:
        Positions to fit on and positions held out, int64, sorted, N together.

    Raises:
        DistillError: No class has two images.
    """
    divisible = np.flatnonzero(np.bincount(labels)[labels] > 1)
    if len(divisible) == 0:
        raise DistillError(
            f"none of {len(labels)} labeled images can be held out to choose a setting on, since "
            "no class has two; give more labels, or leave out --sweep and --method logistic"
        )
    chosen = class_balanced_subset(labels[divisible], fraction, seed=seed)
    held_out = divisible[chosen]
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def read_names(file: Path) -> list[str]:
    """Read a list of image names, one a line; empty lines do not count.

    Raises:
        DistillError: A file that cannot be read as text, or without a name.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise DistillError(
            f"--labels {file} is neither a number nor a list that can be read ({reason}); give a "
            "share above 0 and at most 1, or a text file with an image name a line"
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DistillError(f"--labels {file} names no image; put one file name on each line")
    return names


def named_images(names: Sequence[str], paths: Sequence[str], *, source: str) -> np.ndarray:
    """Find images by relative path, or by file name where it is the only one of that name.

    Args:
        names: File names, as `n01440764_10026.JPEG`, or paths below the set's folder, as
            `n01440764/n01440764_10026.JPEG`.
        paths: (N,) paths of the images below the set's folder, with "/" between their parts.
        source: What to call the list in messages.

    Returns:
        Positions in `paths`, int64, sorted, each once.

    Raises:
        DistillError: Names that no image has, or that several have, naming the first.
    """
    position_of: dict[str, int] = {}
    for position, path in enumerate(paths):
        base = path.rpartition("/")[2]
        position_of[base] = _SEVERAL if base in position_of else position
    position_of.update({path: position for position, path in enumerate(paths)})
    missing = [name for name in names if name not in position_of]
    if missing:
        raise DistillError(
            f"{source}: {len(missing)} of {len(names)} names are not among the training images, "
            f"the first is {missing[0]}; give the file names or the paths below train/"
        )
    found = np.array([position_of[name] for name in names], dtype=np.int64)
    if (found == _SEVERAL).any():
        ambiguous = names[int(np.argmax(found == _SEVERAL))]
        raise DistillError(
            f"{source}: several training images are called {ambiguous}; give their paths below "
            "train/, as CLASS/NAME"
        )
    return np.unique(found)


MakeBatches = Callable[[np.ndarray, Standardizer], Iterator[HeadBatch]]
"""From training rows and their statistics to all batches of all epochs."""

_LOGITS_AT_ONCE = 2**24


@dataclass(frozen=True)
class LabeledEmbeddings:
    """Embeddings of training and validation images with their classes.

    Attributes:
        train_features: (N, D), any scale and floating dtype; may lie on the disk.
        train_labels: (N,) classes, at least 0.
        val_features: (M, D), likewise.
        val_labels: (M,) classes, at least 0.

    Raises:
        DistillError: See `require_labels`; embeddings that are not finite or of different widths.
    """

    train_features: Rows
    train_labels: np.ndarray
    val_features: Rows
    val_labels: np.ndarray

    def __post_init__(self) -> None:
        require_labels(self.train_labels, what="the training images")
        require_labels(self.val_labels, what="the validation images", min_classes=1)
        require_same_width(self.train_features, self.val_features)
        require_finite(self.train_features)
        require_finite(self.val_features)

    @property
    def num_classes(self) -> int:
        """C."""
        return int(max(self.train_labels.max(), self.val_labels.max())) + 1

    def rows(self, chosen: np.ndarray | None) -> np.ndarray:
        """Return the training rows to learn from, all when none were chosen.

        Raises:
            DistillError: They are of one class.
        """
        rows = np.arange(len(self.train_labels)) if chosen is None else chosen
        require_labels(self.train_labels[rows], what="the labeled training images")
        return rows


@dataclass(frozen=True)
class LinearResult:
    """What linear heads achieve on the validation images.

    Attributes:
        published: Scores of the published setting.
        best: Scores of the setting that the sweep chose; None without a sweep.
        best_setting: That setting.
        held_out: Accuracy of every setting of the sweep on held-out training rows, by setting.
    """

    published: ClassScores
    best: ClassScores | None
    best_setting: HeadSetting | None
    held_out: dict[HeadSetting, float]


def linear_evaluation(
    data: LabeledEmbeddings,
    *,
    device: torch.device,
    rows: np.ndarray | None = None,
    sweep: Sequence[HeadSetting] = (),
    seed: int = 0,
    schedule: LinearSchedule = PUBLISHED_SCHEDULE,
    make_batches: MakeBatches | None = None,
) -> LinearResult:
    """Train linear heads on training rows and score them on the validation rows.

    Args:
        data: The embeddings.
        device: Where heads are trained.
        rows: The training rows to learn from; None: all.
        sweep: Settings to choose from besides the published one; none: no sweep.
        seed: Of the heads' start, of the order of rows and of what the sweep holds out; from 0.
        schedule: Epochs, batches, decay.
        make_batches: Where batches come from; None: from `data.train_features`.

    Raises:
        DistillError: Rows of one class, or a sweep over rows that cannot be split.
    """
    rows = data.rows(rows)
    probe = _Probe(data, device, seed, schedule, make_batches)
    settings, held_out = [PUBLISHED_SETTING], {}
    if sweep:
        candidates = list(dict.fromkeys([PUBLISHED_SETTING, *sweep]))
        scores = probe.scores_held_out(rows, candidates)
        best = max(range(len(scores)), key=lambda g: (scores[g].accuracy, -scores[g].loss))
        settings.append(candidates[best])
        held_out = {
            setting: score.accuracy for setting, score in zip(candidates, scores, strict=True)
        }
    heads, standardizer = probe.train(rows, settings)
    val = probe.standardized(data.val_features, np.arange(len(data.val_labels)), standardizer)
    found = score_heads(heads, val, data.val_labels, num_classes=data.num_classes)
    if not sweep:
        return LinearResult(found[0], best=None, best_setting=None, held_out=held_out)
    return LinearResult(found[0], found[1], settings[1], held_out)


@dataclass(frozen=True)
class _Probe:
    """The parts of a linear evaluation that its passes share; attributes as its arguments."""

    data: LabeledEmbeddings
    device: torch.device
    seed: int
    schedule: LinearSchedule
    make_batches: MakeBatches | None

    def scores_held_out(
        self, rows: np.ndarray, settings: Sequence[HeadSetting]
    ) -> list[ClassScores]:
        """Train on a part of the rows and score on the rest."""
        labels = self.data.train_labels[rows]
        fitted, held_out = held_out_rows(labels, seed=self.seed)
        heads, standardizer = self.train(rows[fitted], settings)
        standardized = self.standardized(self.data.train_features, rows[held_out], standardizer)
        classes = self.data.num_classes
        return score_heads(heads, standardized, labels[held_out], num_classes=classes)

    def train(
        self, rows: np.ndarray, settings: Sequence[HeadSetting]
    ) -> tuple[LinearHeads, Standardizer]:
        """Train a head with each setting."""
        features = self.data.train_features
        standardizer = fit_standardizer(features, rows, device=self.device)
        heads = initial_heads(
            len(settings),
            num_classes=self.data.num_classes,
            dim=features.shape[1],
            seed=self.seed,
            device=self.device,
        )
        batches = (self.make_batches or self._batches)(rows, standardizer)
        return train_heads(heads, settings, batches, self.schedule), standardizer

    def standardized(
        self, features: Rows, rows: np.ndarray, standardizer: Standardizer
    ) -> StandardizedRows:
        return StandardizedRows(features, rows, standardizer, device=self.device)

    def _batches(self, rows: np.ndarray, standardizer: Standardizer) -> Iterator[HeadBatch]:
        """Go through the rows in a new order every epoch, which follows from the seed alone."""
        standardized = self.standardized(self.data.train_features, rows, standardizer)
        labels = self.data.train_labels[rows]
        size = self.schedule.batch_size
        for epoch in range(self.schedule.num_epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(len(rows))
            for start in range(0, len(rows), size):
                places = np.sort(order[start : start + size])  # reads a memory map forwards
                yield HeadBatch(epoch, standardized(places), self._on_device(labels[places]))

    def _on_device(self, labels: np.ndarray) -> Tensor:
        return torch.from_numpy(labels.astype(np.int64)).to(self.device)


def score_heads(
    heads: LinearHeads, rows: StandardizedRows, labels: np.ndarray, *, num_classes: int
) -> list[ClassScores]:
    """Score heads on standardized rows with their labels, a part of the rows at a time."""
    at_once = max(1, _LOGITS_AT_ONCE // heads.bias.numel())

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(rows), at_once):
            places = np.arange(start, min(start + at_once, len(rows)))
            target = torch.from_numpy(labels[places].astype(np.int64)).to(heads.bias.device)
            yield heads.logits(rows(places)), target

    return class_scores(batches(), num_classes=num_classes)


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
    data: LabeledEmbeddings,
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
    data: LabeledEmbeddings,
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
    data: LabeledEmbeddings, rows: np.ndarray, device: torch.device
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


_MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class LinearOptions(EvaluationOptions):
    """How `distill linear` measures."""

    method: Literal["sgd", "logistic"] = "sgd"
    """sgd: as published; logistic: L-BFGS, a fast check whose penalty is chosen on held-out
    training images."""
    sweep: bool = False
    """Also train a head for every pair of --learning-rates and --weight-decays, chosen on held-out
    training images."""
    learning_rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    """Of the sweep."""
    weight_decays: tuple[float, ...] = (0.0, 1e-5, 1e-4, 1e-3)
    """Of the sweep."""
    labels: str | None = None
    """Learn from few labels: a share of every class (0.01, 0.1) or a file with an image name a
    line."""
    label_seeds: int = 5
    """How many times to draw the share, for mean and standard deviation."""
    layers: tuple[str, ...] = ()
    """Inner layers instead of the embedding: all, conv1 ... fc7 (AlexNet), stage1 ... stage4
    (ResNets), or module paths."""
    augment: bool = False
    """Learn from random crops and flips, embedded anew at every step, instead of one embedding per
    image."""
    seed: int = 0
    """Of the heads' start, of the order of images, and of what is held out or labeled."""

    @property
    def fraction(self) -> float | None:
        """The share that `labels` gives; None when it names a file, or without it."""
        try:
            return None if self.labels is None else float(self.labels)
        except ValueError:
            return None

    @property
    def settings(self) -> list[HeadSetting]:
        """The settings of the sweep; none without one.

        Raises:
            DistillError: A learning rate or weight decay out of range.
        """
        if not self.sweep:
            return []
        return [
            HeadSetting(rate, decay) for rate in self.learning_rates for decay in self.weight_decays
        ]


def check_linear(options: LinearOptions) -> None:
    """Refuse values out of range and flags that contradict each other.

    Raises:
        DistillError: One sentence per problem.
    """
    problems = []
    if not 0 <= options.seed <= _MAX_SEED:
        problems.append(f"--seed is {options.seed}, it must be between 0 and {_MAX_SEED}")
    if options.label_seeds < 1:
        problems.append(f"--label-seeds is {options.label_seeds}, it must be at least 1")
    if options.sweep and not (options.learning_rates and options.weight_decays):
        problems.append("--sweep needs a value of --learning-rates and one of --weight-decays")
    against = [
        ("--sweep", options.sweep, "--method logistic", options.method == "logistic"),
        ("--augment", options.augment, "--method logistic", options.method == "logistic"),
        ("--augment", options.augment, "--layers", bool(options.layers)),
        ("--labels", options.labels is not None, "--layers", bool(options.layers)),
    ]
    problems += [f"{a} does not go with {b}; leave one out" for a, x, b, y in against if x and y]
    if problems:
        raise DistillError("; ".join(problems))
    _ = options.settings  # refuses what no head can be trained with
    if options.fraction is not None:
        class_balanced_subset(np.arange(2), options.fraction, seed=0)  # refuses what is no share


@dataclass(frozen=True)
class Found:
    """What one measurement found.

    Attributes:
        scores: By what the metric's name gets: "" for the published setting, "_sweep" for the one
            that a sweep chose, "_logistic".
        choice_header: Of `choice`.
        choice: What was chosen from, with the accuracy on held-out training images; may be empty.
        setting: What the sweep chose; None without one.
    """

    scores: dict[str, ClassScores]
    choice_header: list[str]
    choice: list[list[str]]
    setting: HeadSetting | None = None

    @property
    def per_class(self) -> np.ndarray:
        """Accuracy of each class, of what was chosen where there was a choice."""
        return list(self.scores.values())[-1].per_class

    def metrics(self, suffix: str = "") -> dict[str, float]:
        """Return the numbers by the names that metrics.json gets, which end with `suffix`."""
        found = {}
        for kind, scores in self.scores.items():
            found[f"linear_accuracy{kind}{suffix}"] = scores.accuracy
            if scores.top5_accuracy is not None:
                found[f"linear_top5_accuracy{kind}{suffix}"] = scores.top5_accuracy
        return found


@dataclass(frozen=True)
class LinearProbe:
    """Measures one set of embeddings.

    Attributes:
        evaluation: The student, its images and the device.
        options: Which heads.
        train: Embeddings of the training images, in memory or on the disk.
        val: Of the validation images, likewise.
    """

    evaluation: Subject
    options: LinearOptions
    train: Embeddings | StoredEmbeddings
    val: Embeddings | StoredEmbeddings

    def measure(
        self, *, columns: slice | None = None, rows: np.ndarray | None = None, seed: int
    ) -> Found:
        """Measure some columns of the embeddings on some training rows; None takes all.

        Raises:
            DistillError: See `LabeledEmbeddings`, `linear_evaluation`, `logistic_evaluation`.
        """
        of_train, of_val = self.train.features, self.val.features
        if columns is not None:
            of_train, of_val = of_train[:][:, columns], of_val[:][:, columns]
        data = LabeledEmbeddings(of_train, self.train.labels, of_val, self.val.labels)
        if self.options.method == "logistic":
            return self._logistic(data, rows, seed)
        found = linear_evaluation(
            data,
            device=self.evaluation.evaluator.device,
            rows=rows,
            sweep=self.options.settings,
            seed=seed,
            make_batches=self._augmented(seed) if self.options.augment else None,
        )
        scores = {"": found.published}
        if found.best is not None:
            scores["_sweep"] = found.best
        choice = [
            [f"{one.learning_rate:g}", f"{one.weight_decay:g}", f"{share:.4f}"]
            for one, share in found.held_out.items()
        ]
        header = ["learning rate", "weight decay", "held out"]
        return Found(scores, header, choice, found.best_setting)

    def class_names(self) -> list[str]:
        """Return the names of the classes by label."""
        names = self.evaluation.evaluator.data.train.classes
        assert names is not None  # whoever has labels has names
        return list(names)

    def _logistic(self, data: LabeledEmbeddings, rows: np.ndarray | None, seed: int) -> Found:
        device = self.evaluation.evaluator.device
        found = logistic_evaluation(data, device=device, rows=rows, seed=seed)
        choice = [[f"{penalty:g}", f"{share:.4f}"] for penalty, share in found.held_out.items()]
        return Found({"_logistic": found.scores}, ["penalty", "held out"], choice)

    def _augmented(self, seed: int) -> AugmentedBatches:
        evaluator = self.evaluation.evaluator
        return AugmentedBatches(
            self.evaluation.network,
            evaluator.data.train,
            self.train.index,
            evaluator.inference_config(evaluator.data.train),
            default_augmentation(evaluator.data),
            PUBLISHED_SCHEDULE,
            seed,
        )


@dataclass(frozen=True)
class Table:
    """What people see beside the metrics: a title, a header, rows of cells."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class LinearReport:
    """What `distill linear` found.

    Attributes:
        metrics: What was added to metrics.json, by name, accuracies as fractions of 1.
        table: The settings that were chosen from, the label seeds, or the layers; None without any.
        per_class: Accuracy by class name, NaN for a class without validation images; the mean over
            label seeds; of layers none.
    """

    metrics: dict[str, Any]
    table: Table | None = None
    per_class: dict[str, float] = field(default_factory=dict)


def evaluate_linear(run_or_weights: Path, options: LinearOptions) -> LinearReport:
    """Measure a trained student.

    Args:
        run_or_weights: A run directory, a student.safetensors, or other weights with
            `options.student`.
        options: How to measure.

    Returns:
        `linear_accuracy` and, with more than five classes, `linear_top5_accuracy`; with a sweep
        the same with `_sweep` and the chosen setting; `linear_accuracy_logistic`; with few labels
        the mean as `linear_accuracy_labels_0.01` and its `_std`; `linear_accuracy_layer_conv1` and
        so on.

    Raises:
        DistillError: No such run, weights that do not fit, no labels, embeddings that are not
            finite, options out of range or against each other, an unknown layer, a list of labels
            that names other images.
    """
    check_linear(options)
    evaluation = open_evaluation(run_or_weights, options)
    evaluation.require_labels()
    named = _named_images(options, evaluation.evaluator.data.train)
    if options.layers:
        report = _layers(evaluation, options)
    else:
        probe = LinearProbe(evaluation, options, *evaluation.embeddings())
        report = _few_labels(probe, named) if options.labels is not None else _standard(probe)
    return replace(report, metrics=evaluation.keep(EvaluationResult(report.metrics)).metrics)


def _named_images(options: LinearOptions, images: Images) -> np.ndarray | None:
    """Return the images that the file of `--labels` names; None when it is no file."""
    if options.labels is None or options.fraction is not None:
        return None
    names = read_names(Path(options.labels).expanduser())
    if not isinstance(images, FolderImages):
        raise DistillError(
            f"--labels {options.labels} lists file names and {images.name} are not files; give a "
            "share of every class, as 0.01"
        )
    paths = [images.relative_path(i) for i in range(len(images))]
    return named_images(names, paths, source=f"--labels {options.labels}")


def _standard(probe: LinearProbe) -> LinearReport:
    found = probe.measure(seed=probe.options.seed)
    suffix = _augmented(probe.options)
    metrics: dict[str, Any] = found.metrics(suffix)
    if found.setting is not None:
        metrics[f"linear_sweep_learning_rate{suffix}"] = found.setting.learning_rate
        metrics[f"linear_sweep_weight_decay{suffix}"] = found.setting.weight_decay
    title = "accuracy on held-out training images, which chose"
    table = Table(title, found.choice_header, found.choice) if found.choice else None
    return LinearReport(metrics, table, _by_name(probe, found.per_class))


def _few_labels(probe: LinearProbe, named: np.ndarray | None) -> LinearReport:
    """Measure with every seed; return mean and standard deviation."""
    options = probe.options
    seeds = range(options.seed, options.seed + options.label_seeds)
    found = [probe.measure(rows=_labeled(probe, named, seed), seed=seed) for seed in seeds]
    share = Path(str(options.labels)).stem if named is not None else f"{options.fraction:g}"
    drawn = [one.metrics(f"_labels_{share}{_augmented(options)}") for one in found]
    metrics: dict[str, Any] = {}
    for name in drawn[0]:
        values = [one[name] for one in drawn]
        metrics[name] = float(np.mean(values))
        if len(values) > 1:
            metrics[f"{name}_std"] = float(np.std(values, ddof=1))
    rows = [
        [str(seed), *(f"{value:.4f}" for value in one.values())]
        for seed, one in zip(seeds, drawn, strict=True)
    ]
    per_class = np.mean([one.per_class for one in found], axis=0)
    return LinearReport(
        metrics, Table("by seed", ["seed", *drawn[0]], rows), _by_name(probe, per_class)
    )


def _labeled(probe: LinearProbe, named: np.ndarray | None, seed: int) -> np.ndarray:
    """Return the training rows that have a label: the named ones, or a share of every class."""
    train, fraction = probe.train, probe.options.fraction
    if named is not None:
        return np.flatnonzero(np.isin(train.index, named))
    assert fraction is not None
    return class_balanced_subset(train.labels, fraction, seed=seed)


def _layers(evaluation: Subject, options: LinearOptions) -> LinearReport:
    """Measure layer by layer; all come out of one pass, which nothing keeps and nobody shares."""
    distributed.release_others()
    evaluator = evaluation.evaluator
    network = layer_network(evaluation.network.cpu(), options.layers)
    layers = network.backbone
    assert isinstance(layers, LayerBackbone)
    num_images = len(evaluator.train_index) + len(evaluator.val_index)
    require_memory(
        2 * 4 * network.embedding_dim * num_images,  # the batches, and all of them together
        torch.device("cpu"),
        what=f"what {len(layers.layers)} layers make of the images",
        remedy="name fewer of them with --layers",
    )
    train, val = evaluator.embed_both(
        prepare_for_device(network, evaluator.device), what="student's layers"
    )
    probe = LinearProbe(evaluation, options, train, val)
    metrics: dict[str, Any] = {}
    rows, titles = [], ["layer", "width"]
    for name, columns in layers.columns().items():
        found = probe.measure(columns=columns, seed=options.seed)
        metrics.update(found.metrics(f"_layer_{name}"))
        titles = ["layer", "width", *found.metrics()]
        shown = [f"{value:.4f}" for value in found.metrics().values()]
        rows.append([name, str(layers.widths[name]), *shown])
    return LinearReport(metrics, Table("by layer", titles, rows))


def _augmented(options: LinearOptions) -> str:
    return "_augmented" if options.augment else ""


def _by_name(probe: LinearProbe, per_class: np.ndarray) -> dict[str, float]:
    # There may be classes beyond the last that has an image.
    return dict(zip(probe.class_names(), map(float, per_class), strict=False))
