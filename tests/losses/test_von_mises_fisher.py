"""The von Mises-Fisher distribution against exact values, exact marginals and published ones."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import cumulative_trapezoid
from torch import Tensor
from torch.nn import functional as F

from distill.errors import DistillError
from distill.losses import von_mises_fisher as vmf
from distill.losses.von_mises_fisher import bessel

DIMS = [2, 3, 4, 64, 127, 256, 2048, 4096]
KAPPAS = [0.1, 1, 10, 1000, 16384, 1e5]
SAMPLED = [(2, 5), (2, 1e5), (3, 1), (4, 20), (64, 0.1), (256, 10), (256, 16384), (1024, 1000)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def directions(rows: int, dim: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(rows, dim, dtype=torch.float64, generator=seeded(seed))).to(
        dtype
    )


def angles(first: Tensor, second: Tensor) -> Tensor:
    """Angles between unit rows, exact for small ones too."""
    return 2 * torch.asin((first - second).norm(dim=-1).clamp(max=2) / 2)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kappa", KAPPAS)
def test_normalizer_mean_cosine_and_entropy_match_40_digits(dim, kappa):
    with mpmath.workdps(40):
        order, exact_kappa = mpmath.mpf(dim) / 2 - 1, mpmath.mpf(kappa)
        value = mpmath.besseli(order, exact_kappa, maxterms=10**7)
        ratio = mpmath.besseli(order + 1, exact_kappa, maxterms=10**7) / value
        log_c = order * mpmath.log(exact_kappa) - mpmath.log(value)
        log_c -= (order + 1) * mpmath.log(2 * mpmath.pi)
        exact_entropy, deficit = -log_c - exact_kappa * ratio, exact_kappa * (1 - ratio)
    close = {"rel": 1e-13, "abs": 2e-11}  # the absolute part is a rounding of kappa = 1e5
    assert vmf.log_normalizer(dim, kappa) == pytest.approx(float(log_c), **close)
    assert vmf.mean_cosine(dim, kappa) == pytest.approx(float(ratio), rel=1e-13)
    assert vmf.entropy(dim, kappa) == pytest.approx(float(exact_entropy), **close)
    assert bessel(dim - 2, kappa).deficit == pytest.approx(float(deficit), rel=1e-12)


@pytest.mark.parametrize("kappa", [1e-6, 0.1, 1, 30, 700, 1e5, 1e7])
def test_three_dimensions_have_a_closed_form(kappa):
    log_sinh = kappa + math.log(-math.expm1(-2 * kappa) / 2)
    expected = math.log(kappa) - math.log(4 * math.pi) - log_sinh
    assert vmf.log_normalizer(3, kappa) == pytest.approx(expected, rel=1e-12)
    if kappa >= 0.1:
        expected = 1 / math.tanh(kappa) - 1 / kappa
        assert vmf.mean_cosine(3, kappa) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dim", [2, 3, 64, 4096])
def test_a_kappa_of_nearly_0_is_the_uniform_distribution_and_a_huge_one_is_finite(dim):
    log_area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    assert vmf.entropy(dim, 1e-300) == pytest.approx(log_area, rel=1e-12)
    assert vmf.mean_cosine(dim, 1e-300) == pytest.approx(1e-300 / dim)
    # (d - 1) / 2 log(2 pi e / kappa): a normal distribution on the tangent plane
    flat = (dim - 1) / 2 * (math.log(2 * math.pi) + 1 - math.log(1e300))
    assert vmf.entropy(dim, 1e300) == pytest.approx(flat, rel=1e-12)


@pytest.mark.parametrize("dim", [2, 3, 256])
@pytest.mark.parametrize("kappa", [0.25, 6.25, 100.0, 2500.0, 1e6, 2.5e7])
def test_values_do_not_jump_where_the_number_of_steps_does(dim, kappa):
    below, above = (bessel(dim - 2, kappa * (1 + sign * 1e-12)) for sign in (-1, 1))
    assert above == pytest.approx(below, rel=2e-11)


@pytest.mark.parametrize("dim", [2, 3, 256, 4096])
def test_moments_are_monotone_and_the_mean_cosine_is_the_slope(dim):
    kappas = np.geomspace(0.1, 1e5, 120).tolist()
    cosines = [vmf.mean_cosine(dim, kappa) for kappa in kappas]
    assert np.diff(cosines).min() > 0
    assert np.diff([vmf.entropy(dim, kappa) for kappa in kappas]).max() < 0
    assert all(vmf.mean_cosine(dim + 1, kappa) < vmf.mean_cosine(dim, kappa) for kappa in kappas)
    for kappa, cosine in zip(kappas, cosines, strict=True):
        step = 1e-3 * kappa
        ends = [vmf.log_normalizer(dim, kappa + sign * step) for sign in (-1, 1)]
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(cosine, rel=1e-5, abs=1e-7)


def test_log_density_and_entropy_match_the_published_programs_library(oracles):
    with np.load(oracles / "ceb" / "objectives.npz") as arrays:
        values = {name: float(arrays[name]) for name in arrays.files if name.startswith("vmf_")}
    kinds = {"vmf_logprob_at_mode": 0, "vmf_entropy": 0}
    for name, value in values.items():
        kind, _, case = name.partition("/")
        if kind not in kinds:
            continue
        dim, kappa = (int(part[1:]) for part in case.split("_"))
        if kind == "vmf_entropy":
            ours = vmf.entropy(dim, kappa)
        else:
            mode = directions(1, dim)
            ours = vmf.log_density(mode, mode, kappa).item()
        assert ours == pytest.approx(value, rel=1e-10)
        kinds[kind] += 1
    assert min(kinds.values()) == 16


def test_a_density_integrates_to_one_on_the_circle():
    turn = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)
    circle = torch.stack((turn.cos(), turn.sin()), dim=1)
    for kappa in (0.1, 3, 1e4):
        mean = torch.tensor([0.6, 0.8], dtype=torch.float64)
        density = vmf.log_density(circle, mean, kappa).exp()
        assert torch.trapezoid(density, turn).item() == pytest.approx(1, rel=1e-9)


def test_log_density_broadcasts_and_is_that_of_the_cosine():
    z, mean = directions(5, 7).view(5, 1, 7), directions(6, 7, seed=2)
    found = vmf.log_density(z, mean, 12.0)
    assert found.shape == (5, 6)
    torch.testing.assert_close(found, vmf.log_density_of_cosine(z[:, 0] @ mean.T, 7, 12.0))
    expected = 12 * (z[:, 0] @ mean.T) + vmf.log_normalizer(7, 12.0)
    torch.testing.assert_close(found, expected)
    assert vmf.log_density(z.half(), mean.half(), 12.0).dtype == torch.float32


def test_float32_keeps_its_digits_at_a_large_kappa():
    mean = directions(500, 256, dtype=torch.float32)
    z = vmf.sample(mean, 1e5, generator=seeded())
    exact = vmf.log_density(F.normalize(z.double()), F.normalize(mean.double()), 1e5)
    assert (vmf.log_density(z, mean, 1e5) - exact).abs().max() < 2e-4  # float32 near 1000: 6e-5
    cosine = 1 - torch.arange(1, 50) / 2**15  # exact in float32
    exact = vmf.log_density_of_cosine(cosine.double(), 256, 1e5)
    assert (vmf.log_density_of_cosine(cosine, 256, 1e5) - exact).abs().max() < 2e-4


def test_gradients_of_the_density_are_those_of_the_formula():
    z, mean = directions(3, 5).requires_grad_(), directions(3, 5, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda z, mean: vmf.log_density(z, mean, 7.0), (z, mean))
    for at, other in ((z, mean), (mean, z)):
        (gradient,) = torch.autograd.grad(vmf.log_density(z, mean, 7.0).sum(), at)
        across = 7 * other - 7 * (at * other).sum(1, keepdim=True) * at
        torch.testing.assert_close(gradient - (gradient * at).sum(1, keepdim=True) * at, across)


@pytest.mark.parametrize(("dim", "kappa"), SAMPLED)
def test_sampled_angles_follow_the_exact_marginal(dim, kappa):
    number = 8000
    mean = directions(number, dim)
    z = vmf.sample(mean, kappa, generator=seeded())
    found = angles(z, mean).sort().values.numpy()
    # density of the angle: exp(kappa cos a) sin(a)^(d - 2), in logarithms
    widest = min(math.pi, 12 * math.sqrt(dim / kappa))
    grid = np.linspace(0, widest, 200_001)[1:-1]
    log_density = kappa * (np.cos(grid) - 1) + (dim - 2) * np.log(np.sin(grid))
    cumulative = cumulative_trapezoid(np.exp(log_density - log_density.max()), grid, initial=0)
    expected = np.interp(found, grid, cumulative / cumulative[-1])
    ranks = np.arange(number + 1) / number
    distance = max((ranks[1:] - expected).max(), (expected - ranks[:-1]).max())
    assert distance < 1.95 / math.sqrt(number)  # Kolmogorov-Smirnov at 0.1 %
    deficit = 1 - np.cos(found)
    error = deficit.std() / math.sqrt(number)
    assert deficit.mean() == pytest.approx(1 - vmf.mean_cosine(dim, kappa), abs=3.5 * error)


@pytest.mark.parametrize(
    "mean", [[0.5, 0.5, 0.5, 0.5], [-0.8, 0, 0, 0.6], [1, 0, 0, 0], [-1, 0, 0, 0]]
)
def test_samples_are_isotropic_around_their_mean_direction(mean):
    number, mean = 20_000, torch.tensor(mean, dtype=torch.float64)
    z = vmf.sample(mean.expand(number, 4), 3.0, generator=seeded())
    torch.testing.assert_close(z.norm(dim=1), torch.ones(number).double())
    across = F.normalize(z - (z @ mean)[:, None] * mean)
    bound = 4.5 / math.sqrt(number)  # in standard errors of numbers whose variance is below 1 / 3
    assert across.mean(0).abs().max() < bound * math.sqrt(1 / 3)
    spread = (torch.eye(4).double() - mean.outer(mean)) / 3
    assert (across.T @ across / number - spread).abs().max() < bound * math.sqrt(1 / 3)


@pytest.mark.parametrize("dim", [2, 3, 256])
def test_float32_samples_are_unit_and_right_next_to_the_mean_at_a_large_kappa(dim):
    mean = directions(4000, dim, dtype=torch.float32)
    z = vmf.sample(mean, 1e5, generator=seeded())
    assert z.dtype == torch.float32
    assert (z.norm(dim=1) - 1).abs().max() < 2e-6
    deficit = (z - mean).double().square().sum(1) / 2
    error = deficit.std().item() / math.sqrt(4000)
    assert deficit.mean().item() == pytest.approx(1 - vmf.mean_cosine(dim, 1e5), abs=3.5 * error)
    assert vmf.sample(mean.bfloat16(), 1e5).dtype == torch.float32


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_gradient_of_a_sample_matches_finite_differences(dim):
    mean = directions(4, dim, seed=3)
    mean = torch.cat((mean, torch.eye(dim).double()[:1], -torch.eye(dim).double()[:1]))
    assert torch.autograd.gradcheck(
        lambda mean: vmf.sample(mean, 5.0, generator=seeded()), mean.requires_grad_()
    )


def test_gradient_of_a_sample_is_that_of_the_expectation():
    # E[w . z] = A_d w . mu, so the gradient along the sphere is A_d times w's tangent part
    number, weight = 20_000, torch.tensor([0.3, -1.0, 2.0]).double()
    for row in directions(3, 3):
        mean = row.expand(number, 3).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(
            vmf.sample(mean, 4.0, generator=seeded()) @ weight, mean, torch.ones(number).double()
        )
        gradient = gradient - (gradient @ row)[:, None] * row
        expected = vmf.mean_cosine(3, 4.0) * (weight - (weight @ row) * row)
        error = gradient.std(0) / math.sqrt(number)
        assert ((gradient.mean(0) - expected).abs() < 4 * error).all()


def test_a_generator_fixes_the_samples_and_rows_differ():
    mean = directions(1, 6).expand(50, 6)
    first = vmf.sample(mean, 9.0, generator=seeded(4))
    assert torch.equal(first, vmf.sample(mean, 9.0, generator=seeded(4)))
    assert not torch.equal(first, vmf.sample(mean, 9.0, generator=seeded(5)))
    assert len(first.unique(dim=0)) == 50
    generator = seeded(4)
    vmf.sample(mean, 9.0, generator=generator)
    assert not torch.equal(first, vmf.sample(mean, 9.0, generator=generator))
    assert vmf.sample(mean[:0], 9.0).shape == (0, 6)


@pytest.mark.parametrize(("dim", "kappa_e", "kappa_b"), [(3, 4.0, 9.0), (64, 1024.0, 10.0)])
def test_the_expected_residual_is_the_mean_of_sampled_residuals(dim, kappa_e, kappa_b):
    number = 20_000
    mean_x, mean_y = directions(2, dim)
    z = vmf.sample(mean_x.expand(number, dim), kappa_e, generator=seeded())
    residual = vmf.log_density(z, mean_x, kappa_e) - vmf.log_density(z, mean_y, kappa_b)
    found = vmf.expected_residual(mean_x @ mean_y, dim, kappa_e, kappa_b).item()
    assert found == pytest.approx(
        residual.mean().item(), abs=3.5 * residual.std().item() / math.sqrt(number)
    )


def test_the_residual_of_one_kappa_is_the_divergence():
    cosine = torch.linspace(-1, 1, 9)
    found = vmf.expected_residual(cosine, 5, 20.0, 20.0)
    torch.testing.assert_close(found, 20 * vmf.mean_cosine(5, 20.0) * (1 - cosine))
    assert found[-1] == 0
    assert vmf.residual_constant(2048, 16384, 16384) == 0


@pytest.mark.parametrize(("dim", "kappas"), [(2, (0.1, 5)), (256, (1e5, 10)), (256, (10, 1e5))])
def test_the_residual_constant_is_the_formula(dim, kappas):
    e, b = kappas
    expected = vmf.log_normalizer(dim, e) - vmf.log_normalizer(dim, b)
    expected += (e - b) * vmf.mean_cosine(dim, e)
    assert vmf.residual_constant(dim, e, b) == pytest.approx(expected, rel=1e-9)
    assert vmf.residual_constant(dim, e, b) > 0


@pytest.mark.parametrize("kappa", [0, -1.0, math.inf, math.nan])
def test_a_kappa_out_of_range_is_refused(kappa):
    unit = directions(2, 3)
    message = f"kappa is {kappa}; it must be positive and finite"
    for call in (
        lambda: vmf.log_normalizer(3, kappa),
        lambda: vmf.mean_cosine(3, kappa),
        lambda: vmf.entropy(3, kappa),
        lambda: vmf.log_density(unit, unit, kappa),
        lambda: vmf.log_density_of_cosine(unit, 3, kappa),
        lambda: vmf.sample(unit, kappa),
    ):
        with pytest.raises(DistillError, match=message):
            call()
    with pytest.raises(DistillError, match=f"kappa_b is {kappa}; it must"):
        vmf.expected_residual(unit, 3, 1.0, kappa)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(DistillError, match=r"the width is 1; .* needs 2 or more"):
        vmf.log_normalizer(1, 1.0)
    with pytest.raises(DistillError, match="the width is 1"):
        vmf.sample(torch.ones(4, 1), 1.0)
    with pytest.raises(DistillError, match=r"mean_direction has shape \(3,\)"):
        vmf.sample(directions(1, 3)[0], 1.0)
    with pytest.raises(DistillError, match="z is 3 wide and mean_direction 4"):
        vmf.log_density(directions(2, 3), directions(2, 4), 1.0)
