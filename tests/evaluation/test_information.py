import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill.errors import DistillError
from distill.evaluation.information import contrastive_information, measure_information
from distill.losses.von_mises_fisher import log_density, mean_cosine, sample

KAPPAS = {"kappa_e": 64.0, "kappa_b": 5.0}


def units(number: int, dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(number, dim, generator=generator))


def views(number: int = 40, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    first = units(number, dim)
    return first, F.normalize(first + 0.5 * units(number, dim, seed=1))


def test_equal_views_leave_no_residual_and_do_not_diverge():
    first = units(30, 8)
    found = measure_information(first, first, **KAPPAS)
    assert found["residual_information"] == 0
    assert found["view_kl"] == 0
    assert found["view_cosine"] == 1
    assert found["residual_constant"] > 0
    assert found["entropy_b"] == pytest.approx(found["entropy_e"] + found["residual_constant"])


def test_views_at_right_angles():
    first, second = torch.eye(6)[:3], torch.eye(6)[3:]
    found = measure_information(first, second, **KAPPAS)
    expected = mean_cosine(6, KAPPAS["kappa_e"])
    assert found["residual_information"] == pytest.approx(KAPPAS["kappa_b"] * expected, rel=1e-12)
    assert found["view_kl"] == pytest.approx(KAPPAS["kappa_e"] * expected, rel=1e-12)
    assert found["view_cosine"] == pytest.approx(0, abs=1e-12)


def test_expectations_are_those_of_many_samples():
    first, second = views()
    found = measure_information(first, second, **KAPPAS)
    rounds, generator = 500, torch.Generator().manual_seed(5)
    x, y = first.double().repeat(rounds, 1), second.double().repeat(rounds, 1)
    z = sample(x, KAPPAS["kappa_e"], generator=generator)
    log_e = log_density(z, x, KAPPAS["kappa_e"]).mean()
    log_b = log_density(z, y, KAPPAS["kappa_b"]).mean()
    log_other = log_density(z, y, KAPPAS["kappa_e"]).mean()
    assert found["entropy_e"] == pytest.approx(float(-log_e), abs=0.05)
    assert found["entropy_b"] == pytest.approx(float(-log_b), abs=0.05)
    total = found["residual_information"] + found["residual_constant"]
    assert total == pytest.approx(float(log_e - log_b), abs=0.05)
    assert found["view_kl"] == pytest.approx(float(log_e - log_other), abs=0.2)
    assert found["view_cosine"] == pytest.approx(float((x * y).sum(1).mean()), abs=1e-6)


def test_both_directions_have_one_residual():
    first, second = views()
    there = measure_information(first, second, **KAPPAS)
    back = measure_information(second, first, **KAPPAS)
    for name in ("residual_information", "entropy_b", "view_kl", "view_cosine"):
        assert there[name] == pytest.approx(back[name], rel=1e-12)


def contrastive_by_loops(z, first, second, kappa_b: float, rows: range) -> list[float]:
    """Return the bound of every row among the images `rows`."""
    z, first, second = (tensor.double().numpy() for tensor in (z, first, second))
    found = []
    for i in rows:
        terms = [np.exp(kappa_b * z[i] @ second[j]) for j in rows]
        terms += [np.exp(kappa_b * z[i] @ first[j]) for j in rows if j != i]
        positive = np.exp(kappa_b * z[i] @ second[i])
        found.append(math.log(2 * len(rows) - 1) + math.log(positive / sum(terms)))
    return found


def test_every_image_is_told_apart_from_as_many_others():
    first, second = views(number=10)
    z = sample(first, 64.0, generator=torch.Generator().manual_seed(2))
    found = contrastive_information(z, first, second, kappa_b=5.0, contrast=4)
    expected = [
        *contrastive_by_loops(z, first, second, 5.0, range(4)),
        *contrastive_by_loops(z, first, second, 5.0, range(4, 8)),
        *contrastive_by_loops(z, first, second, 5.0, range(6, 10))[2:],
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_bound_on_information_is_that_of_the_sampled_z():
    first, second = views()
    found = measure_information(first, second, **KAPPAS, seed=9)
    z = sample(F.normalize(first.double()), 64.0, generator=torch.Generator().manual_seed(9))
    expected = contrastive_by_loops(z, first, second, 5.0, range(40))
    assert found["information_y_z"] == pytest.approx(np.mean(expected), rel=1e-6)
    again = measure_information(first, second, **KAPPAS, seed=9)
    assert again == found
    assert measure_information(first, second, **KAPPAS, seed=8) != found


def test_the_bound_on_information_has_its_limits():
    first = torch.eye(64)
    found = measure_information(first, first, kappa_e=1e5, kappa_b=100.0)
    assert found["information_y_z"] == pytest.approx(math.log(2 * 64 - 1), abs=1e-3)
    nothing = measure_information(units(400, 4), units(400, 4, seed=1), **KAPPAS)
    assert nothing["information_y_z"] < 0.1


@pytest.mark.parametrize("kappas", [{"kappa_e": 0.0}, {"kappa_b": -1.0}, {"kappa_b": math.nan}])
def test_a_concentration_is_positive(kappas):
    with pytest.raises(DistillError, match=f"{next(iter(kappas))} is .* positive and finite"):
        measure_information(*views(), **{**KAPPAS, **kappas})
