import math

import pytest
import torch

from distill.errors import DistillError
from distill.losses.clusterfit import ClusterFit


def test_it_is_the_cross_entropy_of_the_images_clusters(rows):
    cluster = torch.arange(30) * 7 % 5
    loss = ClusterFit(4, cluster, num_clusters=5).double()
    weight, bias = loss.head.weight.tolist(), loss.head.bias.tolist()
    total = 0.0
    for s, image in zip(rows.student.tolist(), rows.index.tolist(), strict=True):
        logits = [
            sum(w * x for w, x in zip(row, s, strict=True)) + b
            for row, b in zip(weight, bias, strict=True)
        ]
        total -= logits[image * 7 % 5] - math.log(sum(math.exp(logit) for logit in logits))
    assert loss(*rows).item() == pytest.approx(total / 7, rel=1e-12)


def test_gradients(check_gradients):
    check_gradients(ClusterFit(4, torch.arange(30) % 4, num_clusters=4).double())


def test_clusters_are_part_of_the_state(rows):
    first = ClusterFit(4, torch.arange(30) % 4, num_clusters=4)
    second = ClusterFit(4, torch.full((30,), -1), num_clusters=4)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.cluster, first.cluster)


def test_mistakes_are_told_at_once():
    with pytest.raises(DistillError, match="clusters go from 0 to 4; allowed are 0 to 3"):
        ClusterFit(4, torch.arange(5), num_clusters=4)
