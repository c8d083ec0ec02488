import math

import numpy as np
import torch

from teachers.simclr import SimCLR, simclr_loss


def test_agrees_with_the_original_program(given, agrees):
    hidden = given("hidden")
    outcome = simclr_loss(hidden, temperature=0.1)
    outcome.loss.backward()
    agrees("simclr", loss=outcome.loss, grad=hidden.grad, **outcome.logged)


def test_is_the_papers_sum_over_pairs():
    """Eq. 1 of the paper, by loops: -log of the share of the positive among 2N - 1 others."""
    hidden = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    unit = (hidden / hidden.norm(dim=1, keepdim=True)).double().numpy()
    temperature, total = 0.5, 0.0
    for i in range(12):
        positive = (i + 6) % 12
        scores = {k: math.exp(unit[i] @ unit[k] / temperature) for k in range(12) if k != i}
        total -= math.log(scores[positive] / sum(scores.values()))
    loss = simclr_loss(hidden, temperature=temperature).loss
    assert math.isclose(loss.item(), total / 6, rel_tol=1e-6)  # a mean over images, both summed


def test_equal_views_far_from_all_others_cost_nothing():
    hidden = torch.eye(4).repeat(2, 1)
    outcome = simclr_loss(hidden, temperature=0.01)
    assert outcome.loss.item() < 1e-6
    assert math.isclose(outcome.logged["i_y_zx"].item(), math.log(7), rel_tol=1e-6)


def test_the_head_is_the_published_one():
    method = SimCLR(512)
    shapes = {name: tuple(p.shape) for name, p in method.named_parameters()}
    assert shapes == {
        "head.0.weight": (4096, 512),
        "head.1.weight": (4096,),
        "head.1.bias": (4096,),
        "head.3.weight": (256, 4096),
    }
    unit = method.projection(torch.randn(3, 256))
    np.testing.assert_allclose(unit.norm(dim=1), 1, rtol=1e-6)
