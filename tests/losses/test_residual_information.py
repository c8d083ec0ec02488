"""The penalty against a mean over samples, as C-SimCLR draws them."""

import pytest
import torch
from torch.nn import functional as F

from distill.errors import DistillError
from distill.losses.residual_information import ResidualInformation
from distill.losses.von_mises_fisher import log_density, sample


def views(size: int = 3, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, dim, generator=generator)
    return 3 * x, x + 0.5 * torch.randn(size, dim, generator=generator)


def test_it_is_the_expectation_of_what_c_simclr_samples():
    x, y = views()
    generator = torch.Generator().manual_seed(1)
    total = 0.0
    unit_x, unit_y = (F.normalize(view).repeat(20_000, 1) for view in (x, y))
    for a, b in ((unit_x, unit_y), (unit_y, unit_x)):
        z = sample(a, 20.0, generator=generator)
        total += (log_density(z, a, 20.0) - log_density(z, b, 4.0)).mean().item()
    found = ResidualInformation(1.0, kappa_e=20.0, kappa_b=4.0).information(x, y)
    assert found.item() == pytest.approx(total, abs=0.03)


def test_the_penalty_is_nothing_for_equal_views_and_has_the_informations_gradient():
    price = ResidualInformation(0.3, kappa_e=20.0, kappa_b=4.0)
    x, y = (view.requires_grad_() for view in views())
    assert price.penalty(x, 7 * x).item() == pytest.approx(0, abs=1e-5)
    assert price.penalty(x, y).item() > 0.01
    (gradient,) = torch.autograd.grad(price.penalty(x, y), x)
    (expected,) = torch.autograd.grad(0.3 * price.information(x, y), x)
    torch.testing.assert_close(gradient, expected)
    assert (gradient * y).sum() < 0  # towards the other view


def test_without_rows_it_still_takes_part():
    x = torch.empty(0, 4, requires_grad=True)
    penalty = ResidualInformation(1.0).penalty(x, x)
    penalty.backward()
    assert penalty.item() == 0
    assert x.grad.shape == (0, 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [((-1.0,), "beta is -1"), ((1.0, 0.0), "kappa_e is 0"), ((1.0, 1.0, -2.0), "kappa_b is -2")],
)
def test_mistakes_are_told(values, message):
    with pytest.raises(DistillError, match=message):
        ResidualInformation(*values)
