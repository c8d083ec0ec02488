"""Linear evaluation: the accuracy of one linear layer on frozen embeddings.

Protocol (CompRess, NeurIPS 2020): L2-normalized embeddings, standardized with the mean and variance
of the training rows, one linear layer, SGD (`distill.evaluation.linear_heads`). The head after the
last epoch is scored; the published program reports the best epoch on the validation images, which
choose nothing here. A sweep trains a head for each setting at once on nine tenths of the training
rows, chooses on the rest, and trains the chosen setting again on all rows, along with the published
one.

Options: logistic regression instead of SGD, whose penalty is chosen in the same way; few labels
instead of all (`distill.evaluation.label_subsets`); inner layers instead of the embedding
(`distill.evaluation.layers`).

Shapes: N training rows, M validation rows, D width, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from distill import distributed
from distill.config import AtLeast1, NonNegative, Positive
from distill.data.images import FolderImages, Images
from distill.data.sources import default_augmentation
from distill.device import require_memory
from distill.embeddings.cache import StoredEmbeddings
from distill.embeddings.embed import Embeddings
from distill.embeddings.search import Rows, require_labels, require_same_width
from distill.errors import DistillError
from distill.evaluation.base import (
    Evaluation,
    EvaluationOptions,
    EvaluationResult,
    Metric,
    Seed,
    Subject,
    Table,
    register_evaluation,
)
from distill.evaluation.label_subsets import (
    class_balanced_subset,
    held_out_rows,
    named_images,
    read_names,
)
from distill.evaluation.layers import LayerBackbone, layer_network
from distill.evaluation.linear_heads import (
    PUBLISHED_SCHEDULE,
    PUBLISHED_SETTING,
    ClassScores,
    HeadBatch,
    HeadSetting,
    LinearHeads,
    LinearSchedule,
    StandardizedRows,
    Standardizer,
    augmented_batches,
    fit_logistic,
    fit_standardizer,
    initial_heads,
    require_finite,
    score_heads,
    shuffled_batches,
    train_heads,
)
from distill.models.networks import prepare_for_device

MakeBatches = Callable[[np.ndarray, Standardizer], Iterator[HeadBatch]]
"""From training rows and their standardizer to all batches of all epochs."""
PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_MAX_LOGISTIC_BYTES = 2 * 2**30  # of training rows as float32


def linear_accuracy(
    train_features: Rows,
    train_labels: np.ndarray,
    val_features: Rows,
    val_labels: np.ndarray,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    """Return the accuracy of a linear layer, trained by the published protocol.

    Args:
        train_features: (N, D), any scale and floating dtype; an array or a memory map.
        train_labels: (N,) classes, at least 0.
        val_features: (M, D), likewise.
        val_labels: (M,) classes, at least 0.
        seed: Of the layer's start and of the order of rows, from 0.
        device: Where the layer is trained.

    Raises:
        DistillError: Labels that are missing or of one class; embeddings that are not finite or of
            different widths.

    Example:
        >>> import numpy as np
        >>> train, val = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[2.0, 0.5], [0.1, 3.0]])
        >>> linear_accuracy(train, np.array([0, 1]), val, np.array([0, 0]))
        0.5
    """
    data = LabeledEmbeddings(train_features, train_labels, val_features, val_labels)
    return linear_evaluation(data, device=torch.device(device), seed=seed).scores[""].accuracy


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
        """Return the training rows to fit to; all for None.

        Raises:
            DistillError: They are of one class.
        """
        rows = np.arange(len(self.train_labels)) if chosen is None else chosen
        require_labels(self.train_labels[rows], what="the labeled training images")
        return rows


@dataclass(frozen=True)
class LinearResult:
    """Scores of linear classifiers on the validation images.

    Attributes:
        scores: By suffix of the metric's name: "" for the published setting, "_sweep" for the one
            that a sweep chose, "_logistic" for logistic regression.
        chosen: The setting that a sweep chose; None without a sweep.
        held_out: Accuracy on held-out training rows of each candidate: settings of a sweep, or
            penalties.
    """

    scores: dict[str, ClassScores]
    chosen: HeadSetting | None = None
    held_out: Mapping[HeadSetting, float] | Mapping[float, float] = field(default_factory=dict)

    @property
    def per_class(self) -> np.ndarray:
        """Accuracy of each class, by the chosen setting of a sweep."""
        return list(self.scores.values())[-1].per_class

    def metrics(self, suffix: str = "") -> dict[str, float]:
        """Return the numbers by name, ending with `suffix`."""
        metrics = {}
        for kind, scores in self.scores.items():
            metrics[f"linear_accuracy{kind}{suffix}"] = scores.accuracy
            if scores.top5_accuracy is not None:
                metrics[f"linear_top5_accuracy{kind}{suffix}"] = scores.top5_accuracy
        return metrics


_Fitted = tuple[LinearHeads, Standardizer]


def _scores(
    fitted: _Fitted, features: Rows, labels: np.ndarray, rows: np.ndarray
) -> list[ClassScores]:
    """Score heads on some rows, on the device of the heads."""
    heads, standardizer = fitted
    standardized = StandardizedRows(features, rows, standardizer, device=heads.weight.device)
    return score_heads(heads, standardized, labels[rows])


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
        rows: The training rows to fit to; None: all.
        sweep: Settings to choose from besides the published one; empty: no sweep.
        seed: Of the heads' start, of the order of rows and of what the sweep holds out; from 0.
        schedule: Epochs, batch size, decay, momentum.
        make_batches: Makes the batches; None: shuffled rows of `data.train_features`.

    Raises:
        DistillError: Rows of one class, or a sweep over rows that cannot be split.
    """
    features, labels = data.train_features, data.train_labels

    def trained(rows: np.ndarray, settings: Sequence[HeadSetting]) -> _Fitted:
        standardizer = fit_standardizer(features, rows, device=device)
        heads = initial_heads(
            len(settings),
            num_classes=data.num_classes,
            dim=features.shape[1],
            seed=seed,
            device=device,
        )
        if make_batches is not None:
            batches = make_batches(rows, standardizer)
        else:
            standardized = StandardizedRows(features, rows, standardizer, device=device)
            batches = shuffled_batches(standardized, labels[rows], schedule, seed=seed)
        return train_heads(heads, settings, batches, schedule), standardizer

    rows = data.rows(rows)
    settings: list[HeadSetting] = [PUBLISHED_SETTING]
    held_out_accuracy: dict[HeadSetting, float] = {}
    if sweep:
        candidates = list(dict.fromkeys([PUBLISHED_SETTING, *sweep]))
        fitted, held_out = held_out_rows(labels[rows], seed=seed)
        scores = _scores(trained(rows[fitted], candidates), features, labels, rows[held_out])
        best = max(range(len(scores)), key=lambda g: (scores[g].accuracy, -scores[g].loss))
        settings.append(candidates[best])
        held_out_accuracy = {
            setting: one.accuracy for setting, one in zip(candidates, scores, strict=True)
        }
    everything = np.arange(len(data.val_labels))
    scores = _scores(trained(rows, settings), data.val_features, data.val_labels, everything)
    if not sweep:
        return LinearResult({"": scores[0]})
    return LinearResult({"": scores[0], "_sweep": scores[1]}, settings[1], held_out_accuracy)


def logistic_evaluation(
    data: LabeledEmbeddings,
    *,
    rows: np.ndarray | None = None,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> LinearResult:
    """Fit logistic regression to training rows and score it on the validation rows.

    Args:
        data: The embeddings.
        rows: The training rows to fit to; None: all.
        penalties: Positive candidates; the most accurate one on held-out training rows is used, of
            equally accurate ones the strongest.
        seed: Of what is held out, from 0.

    Raises:
        DistillError: Rows of one class, too many rows, or rows that cannot be split.
    """
    features, labels, rows = data.train_features, data.train_labels, data.rows(rows)
    num_bytes = 4 * len(rows) * features.shape[1]
    if num_bytes > _MAX_LOGISTIC_BYTES:
        raise DistillError(
            f"logistic regression holds all training rows in memory, {num_bytes / 2**30:.1f} GiB "
            f"of them, and takes at most {_MAX_LOGISTIC_BYTES / 2**30:.0f} GiB; use --method sgd, "
            "the default, which reads them batch by batch"
        )
    penalties = sorted(penalties, reverse=True)
    held_out_accuracy: dict[float, float] = {}
    if len(penalties) > 1:
        fitted, held_out = held_out_rows(labels[rows], seed=seed)
        fit = fit_logistic(
            features, labels, rows[fitted], num_classes=data.num_classes, penalties=penalties
        )
        scores = _scores(fit, features, labels, rows[held_out])
        held_out_accuracy = {
            penalty: one.accuracy for penalty, one in zip(penalties, scores, strict=True)
        }
    best = max(penalties, key=lambda penalty: held_out_accuracy.get(penalty, 0.0))
    fit = fit_logistic(features, labels, rows, num_classes=data.num_classes, penalties=[best])
    everything = np.arange(len(data.val_labels))
    (score,) = _scores(fit, data.val_features, data.val_labels, everything)
    return LinearResult({"_logistic": score}, held_out=held_out_accuracy)


_KINDS = {
    None: "a linear classifier, as published",
    "_sweep": "a linear classifier, the best of a sweep",
    "_logistic": "a logistic regression",
}
_NAME = (
    r"linear_(?P<top5>top5_)?accuracy(?P<kind>_sweep|_logistic)?"
    r"(_layer_(?P<layer>.+)|(_labels_(?P<labels>.+?))?(?P<augmented>_augmented)?)?"
)


def _accuracy_meaning(name: re.Match[str]) -> str:
    words = _KINDS[name["kind"]]
    if name["layer"]:
        words += f", at layer {name['layer']}"
    if name["labels"]:
        is_share = re.fullmatch(r"[\d.e-]+", name["labels"]) is not None
        words += ", trained with " + (
            f"a share of {name['labels']} of the labels"
            if is_share
            else f"the labels of {name['labels']}"
        )
    words += ", on random crops at every step" if name["augmented"] else ""
    if name["top5"]:
        return f"share of the validation images whose class is among the top five of {words}"
    return f"accuracy on the validation images of {words}"


def _std_meaning(name: re.Match[str]) -> str:
    return f"standard deviation over draws of the {_accuracy_meaning(name)}"


@register_evaluation(
    "linear",
    summary="measure a linear classifier on a student's embeddings",
    examples="""\
  distill linear runs/first --data photos
      the published protocol: SGD, 40 epochs, learning rate 0.01
  distill linear runs/first --data photos --sweep
      and the best of 24 settings, trained at once, chosen on held-out training images
  distill linear runs/first --data photos --method logistic
      logistic regression by L-BFGS, a fast check
  distill linear runs/first --data photos --labels 0.01
      with 1 % of the labels: mean and standard deviation over five draws
  distill linear runs/first --data photos --layers all
      layer by layer
  distill linear alexnet.pth --student alexnet --data photos --augment
      weights of another origin, on random crops at every step""",
)
class Linear(Evaluation["Linear.Options"]):
    """Measure the accuracy of one linear layer on a student's embeddings."""

    is_shared = True
    METRICS = (
        Metric(_NAME + "_std", _std_meaning, larger_is_better=None),
        Metric(_NAME, _accuracy_meaning),
        Metric(
            "linear_sweep_learning_rate(_augmented)?",
            "learning rate that a sweep of linear classifiers chose",
            unit="setting",
            larger_is_better=None,
        ),
        Metric(
            "linear_sweep_weight_decay(_augmented)?",
            "weight decay that a sweep of linear classifiers chose",
            unit="setting",
            larger_is_better=None,
        ),
    )

    @dataclass(frozen=True)
    class Options(EvaluationOptions):
        """Options of `distill linear`."""

        method: Literal["sgd", "logistic"] = "sgd"
        """sgd: as published; logistic: L-BFGS, a fast check whose penalty is chosen on held-out
        training images (2 GiB of embeddings at most)."""
        sweep: bool = False
        """Also train a head for every pair of --learning-rates and --weight-decays, chosen on
        held-out training images."""
        learning_rates: tuple[Positive, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
        """Of the sweep."""
        weight_decays: tuple[NonNegative, ...] = (0.0, 1e-5, 1e-4, 1e-3)
        """Of the sweep."""
        labels: str | None = None
        """Train with few labels: a share of every class (0.01, 0.1), or a file with one image name
        per line."""
        label_seeds: AtLeast1 = 5
        """How many times to draw the share, for mean and standard deviation."""
        layers: tuple[str, ...] = ()
        """Inner layers instead of the embedding: all, conv1 ... fc7 (AlexNet), stage1 ... stage4
        (ResNets), or module paths."""
        augment: bool = False
        """Train on random crops and flips, embedded again at every step, instead of on one
        embedding per image."""
        seed: Seed = 0
        """Of the heads' start, of the order of images, and of what is held out or labeled."""
        per_class: bool = False
        """Also print the accuracy of every class."""

        @property
        def fraction(self) -> float | None:
            """The share in `labels`; None when it names a file or is not given."""
            try:
                return None if self.labels is None else float(self.labels)
            except ValueError:
                return None

    @classmethod
    def check(cls, options: Options) -> None:
        """Refuse flags that contradict each other, and a share out of range."""
        if options.sweep and not (options.learning_rates and options.weight_decays):
            raise DistillError(
                "--sweep needs a value of --learning-rates and one of --weight-decays"
            )
        logistic, layers = options.method == "logistic", bool(options.layers)
        against = [
            ("--sweep", options.sweep, "--method logistic", logistic),
            ("--augment", options.augment, "--method logistic", logistic),
            ("--augment", options.augment, "--layers", layers),
            ("--labels", options.labels is not None, "--layers", layers),
            ("--per-class", options.per_class, "--layers", layers),
        ]
        problems = [f"{a} does not go with {b}; leave one out" for a, x, b, y in against if x and y]
        if problems:
            raise DistillError("; ".join(problems))
        if options.fraction is not None:
            class_balanced_subset(np.arange(2), options.fraction, seed=0)

    @classmethod
    def run(cls, subject: Subject, options: Options) -> EvaluationResult:
        """Measure with all labels, with few labels, or layer by layer."""
        subject.require_labels()
        if options.layers:
            return _evaluate_layers(subject, options)
        named = _named_images(options, subject.embedder.data.train)
        train, val = subject.embeddings()
        if options.labels is not None:
            return _evaluate_few_labels(subject, options, train, val, named)
        suffix = "_augmented" if options.augment else ""
        measured = _measure(subject, options, train, val, seed=options.seed)
        result = EvaluationResult(measured.metrics(suffix))
        if measured.chosen is not None:
            result.metrics[f"linear_sweep_learning_rate{suffix}"] = measured.chosen.learning_rate
            result.metrics[f"linear_sweep_weight_decay{suffix}"] = measured.chosen.weight_decay
        if measured.held_out:
            sweep = options.method == "sgd"
            rows = [
                [*(f"{x:g}" for x in (vars(one).values() if sweep else [one])), f"{share:.4f}"]
                for one, share in measured.held_out.items()
            ]
            header = ["learning rate", "weight decay"] if sweep else ["penalty"]
            title = "accuracy on held-out training images, used for the choice"
            result.tables.append(Table([*header, "held out"], rows, title))
        if options.per_class:
            result.tables.append(_class_table(subject, measured.per_class))
        return result


def _measure(
    subject: Subject,
    options: Linear.Options,
    train: Embeddings | StoredEmbeddings,
    val: Embeddings | StoredEmbeddings,
    *,
    columns: slice | None = None,
    rows: np.ndarray | None = None,
    seed: int,
) -> LinearResult:
    """Measure a range of columns of the embeddings and a subset of the training rows."""
    of_train, of_val = train.features, val.features
    if columns is not None:
        of_train, of_val = of_train[:][:, columns], of_val[:][:, columns]
    data = LabeledEmbeddings(of_train, train.labels, of_val, val.labels)
    if options.method == "logistic":
        return logistic_evaluation(data, rows=rows, seed=seed)
    sweep = [
        HeadSetting(rate, decay)
        for rate in options.learning_rates
        for decay in options.weight_decays
        if options.sweep
    ]
    embedder = subject.embedder

    def augmented(rows: np.ndarray, standardizer: Standardizer) -> Iterator[HeadBatch]:
        return augmented_batches(
            subject.network,
            embedder.data.train,
            train.index[rows],
            standardizer,
            embedder.inference,
            augmentation=default_augmentation(embedder.data),
            schedule=PUBLISHED_SCHEDULE,
            seed=seed,
        )

    return linear_evaluation(
        data,
        device=embedder.device,
        rows=rows,
        sweep=sweep,
        seed=seed,
        schedule=PUBLISHED_SCHEDULE,
        make_batches=augmented if options.augment else None,
    )


def _named_images(options: Linear.Options, images: Images) -> np.ndarray | None:
    """Return the images that the file of `--labels` names; None when it is no file."""
    if options.labels is None or options.fraction is not None:
        return None
    names = read_names(Path(options.labels).expanduser())
    if not isinstance(images, FolderImages):
        raise DistillError(
            f"--labels {options.labels} lists file names, but the images of {images.name} are not "
            "files; give a share of every class, such as 0.01"
        )
    paths = [images.relative_path(i) for i in range(len(images))]
    return named_images(names, paths, source=f"--labels {options.labels}")


def _evaluate_few_labels(
    subject: Subject,
    options: Linear.Options,
    train: StoredEmbeddings,
    val: StoredEmbeddings,
    named: np.ndarray | None,
) -> EvaluationResult:
    """Measure with every seed; return mean and standard deviation."""
    seeds = range(options.seed, options.seed + options.label_seeds)
    measured = []
    for seed in seeds:
        if named is not None:
            rows = np.flatnonzero(np.isin(train.index, named))
        else:
            assert options.fraction is not None
            rows = class_balanced_subset(train.labels, options.fraction, seed=seed)
        measured.append(_measure(subject, options, train, val, rows=rows, seed=seed))
    share = Path(str(options.labels)).stem if named is not None else f"{options.fraction:g}"
    suffix = f"_labels_{share}{'_augmented' if options.augment else ''}"
    drawn = [one.metrics(suffix) for one in measured]
    result = EvaluationResult({})
    for name in drawn[0]:
        values = [one[name] for one in drawn]
        result.metrics[name] = float(np.mean(values))
        if len(values) > 1:
            result.metrics[f"{name}_std"] = float(np.std(values, ddof=1))
    cells = [
        [str(seed), *(f"{value:.4f}" for value in one.values())]
        for seed, one in zip(seeds, drawn, strict=True)
    ]
    result.tables.append(Table(["seed", *drawn[0]], cells, "by seed"))
    if options.per_class:
        mean = np.mean([one.per_class for one in measured], axis=0)
        result.tables.append(_class_table(subject, mean))
    return result


def _evaluate_layers(subject: Subject, options: Linear.Options) -> EvaluationResult:
    """Measure layer by layer, all from one pass, which is not cached and runs in one process."""
    distributed.release_others()
    embedder = subject.embedder
    network = layer_network(subject.network.cpu(), options.layers)
    layers = network.backbone
    assert isinstance(layers, LayerBackbone)
    num_images = len(embedder.train_index) + len(embedder.val_index)
    require_memory(
        2 * 4 * network.embedding_dim * num_images,  # the batches, and all of them together
        torch.device("cpu"),
        what=f"the features of {len(layers.layers)} layers",
        remedy="name fewer of them with --layers",
    )
    train, val = embedder.embed_both(
        prepare_for_device(network, embedder.device), what="student's layers"
    )
    result, rows, header = EvaluationResult({}), [], ["layer", "width"]
    for name, columns in layers.columns().items():
        measured = _measure(subject, options, train, val, columns=columns, seed=options.seed)
        result.metrics.update(measured.metrics(f"_layer_{name}"))
        header = ["layer", "width", *measured.metrics()]
        shares = [f"{value:.4f}" for value in measured.metrics().values()]
        rows.append([name, str(layers.widths[name]), *shares])
    result.tables.append(Table(header, rows, "by layer"))
    return result


def _class_table(subject: Subject, per_class: np.ndarray) -> Table:
    # Classes after the last one with an image have no accuracy.
    names = subject.embedder.data.train.classes or ()
    rows = [[name, f"{share:.4f}"] for name, share in zip(names, per_class, strict=False)]
    return Table(["class", "accuracy"], rows)
