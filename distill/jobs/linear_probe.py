"""Linear heads on a student's embeddings under one job's options, and their numbers by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.data.transforms import default_augmentation
from distill.evaluation.augmented import AugmentedBatches
from distill.evaluation.class_scores import ClassScores
from distill.evaluation.embed import Embeddings
from distill.evaluation.linear import LabelledEmbeddings, linear_evaluation
from distill.evaluation.linear_heads import PUBLISHED_SCHEDULE, HeadSetting
from distill.evaluation.logistic import logistic_evaluation
from distill.evaluation.stored import StoredEmbeddings
from distill.jobs.linear_options import LinearOptions
from distill.jobs.measurement import Evaluation


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

    evaluation: Evaluation
    options: LinearOptions
    train: Embeddings | StoredEmbeddings
    val: Embeddings | StoredEmbeddings

    def measure(
        self, *, columns: slice | None = None, rows: np.ndarray | None = None, seed: int
    ) -> Found:
        """Measure some columns of the embeddings on some training rows; None takes all.

        Raises:
            DistillError: See `LabelledEmbeddings`, `linear_evaluation`, `logistic_evaluation`.
        """
        of_train, of_val = self.train.features, self.val.features
        if columns is not None:
            of_train, of_val = of_train[:][:, columns], of_val[:][:, columns]
        data = LabelledEmbeddings(of_train, self.train.labels, of_val, self.val.labels)
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

    def _logistic(self, data: LabelledEmbeddings, rows: np.ndarray | None, seed: int) -> Found:
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
            evaluator.how(evaluator.data.train),
            default_augmentation(evaluator.data),
            PUBLISHED_SCHEDULE,
            seed,
        )
