import math

import pytest

from distill.training.pretraining import beta_schedule, target_momentum_schedule


def test_a_constant_beta_ignores_the_steps():
    assert {beta_schedule(0.3, kind="constant", num_steps=9)(step) for step in range(20)} == {0.3}


@pytest.mark.parametrize(("kind", "quarter"), [("linear", 0.25), ("cosine", 0.146447)])
def test_beta_rises_from_nothing(kind, quarter):
    beta = beta_schedule(2.0, kind=kind, num_steps=8)
    assert beta(0) == 0
    assert math.isclose(beta(2), 2 * quarter, rel_tol=1e-5)
    assert math.isclose(beta(4), 1.0)
    assert beta(8) == beta(100) == 2.0


def test_no_rise_starts_at_once():
    assert beta_schedule(2.0, kind="linear", num_steps=0)(0) == 2.0


def test_target_momentum_is_byols():
    """1 - (1 - m0) (cos(pi k / K) + 1) / 2, BYOL, section 3.1."""
    momentum = target_momentum_schedule(0.9, num_steps=100)
    assert math.isclose(momentum(0), 0.9)
    assert math.isclose(momentum(50), 0.95)
    assert math.isclose(momentum(100), 1.0)
    for k in (13, 77):
        expected = 1 - (1 - 0.9) * (math.cos(math.pi * k / 100) + 1) / 2
        assert math.isclose(momentum(k), expected)
