import math

import pytest

from distill.errors import DistillError
from distill.losses.supervised import Supervised


def test_it_is_the_cross_entropy(rows):
    loss = Supervised(4, 3).double()
    weight, bias = loss.head.weight.tolist(), loss.head.bias.tolist()
    total = 0.0
    for s, label in zip(rows.student.tolist(), rows.label.tolist(), strict=True):
        logits = [
            sum(w * x for w, x in zip(row, s, strict=True)) + b
            for row, b in zip(weight, bias, strict=True)
        ]
        total -= logits[label] - math.log(sum(math.exp(logit) for logit in logits))
    assert loss(*rows).item() == pytest.approx(total / 7, rel=1e-12)


def test_gradients(check_gradients):
    check_gradients(Supervised(4, 3).double())


def test_mistakes_are_told_at_once():
    with pytest.raises(DistillError, match="num_classes is 0"):
        Supervised(4, 0)
