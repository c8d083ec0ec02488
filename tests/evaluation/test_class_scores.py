"""Scores counted by hand."""

import numpy as np
import torch

from distill.evaluation.linear import class_scores


def logits_of(order: list[list[int]], num_classes: int) -> torch.Tensor:
    """Return (B, 1, C) logits that rank the listed classes first, in their order."""
    logits = torch.zeros(len(order), 1, num_classes)
    for row, classes in enumerate(order):
        for place, c in enumerate(classes):
            logits[row, 0, c] = 10 - place
    return logits


def test_top1_top5_and_classes_by_hand():
    order = [[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [5, 4, 3, 2, 1], [6, 5, 4, 3, 2]]
    labels = torch.tensor([0, 0, 1, 1])
    batches = [(logits_of(order[:3], 7), labels[:3]), (logits_of(order[3:], 7), labels[3:])]
    (scores,) = class_scores(batches, num_classes=7)
    assert scores.accuracy == 1 / 4
    assert scores.top5_accuracy == 3 / 4
    assert scores.per_class[0] == 0.5
    assert scores.per_class[1] == 0
    assert np.isnan(scores.per_class[2:]).all()


def test_five_classes_have_no_top5():
    (scores,) = class_scores([(torch.randn(6, 1, 5), torch.arange(6) % 5)], num_classes=5)
    assert scores.top5_accuracy is None
    (scores,) = class_scores([(torch.randn(6, 1, 6), torch.arange(6))], num_classes=6)
    assert scores.top5_accuracy is not None


def test_classifiers_are_scored_apart():
    labels = torch.tensor([0, 1, 2])
    right, wrong = torch.eye(3), torch.eye(3)[[1, 2, 0]]
    found = class_scores([(torch.stack([wrong, right], 1), labels)], num_classes=3)
    assert [scores.accuracy for scores in found] == [0, 1]
    expected = torch.nn.functional.cross_entropy(right, labels)
    np.testing.assert_allclose(found[1].loss, expected, rtol=1e-6)


def test_what_is_not_finite_hits_nothing():
    logits = torch.zeros(2, 2, 7)
    logits[:, 0] = torch.nan
    found = class_scores([(logits, torch.tensor([0, 0]))], num_classes=7)
    assert found[0].accuracy == found[0].top5_accuracy == 0
    assert found[0].loss == float("inf")
    assert found[1].accuracy == 1
