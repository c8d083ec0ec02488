import math

import pytest
import torch
from torch.nn import functional as F

from distill.errors import DistillError
from distill.losses.von_mises_fisher import mean_cosine
from teachers.c_simclr import CSimCLR, c_simclr_loss
from teachers.simclr import simclr_loss


@pytest.mark.parametrize(
    ("kappa_e", "kappa_b", "beta"), [(1024, 10, 1), (1024, 10, 0), (256, 20, 0.1)]
)
def test_agrees_with_the_original_program(given, agrees, kappa_e, kappa_b, beta):
    hidden = given("hidden")
    mu = F.normalize(hidden)
    outcome = c_simclr_loss(mu, mu, kappa_e=kappa_e, kappa_b=kappa_b, beta=beta)
    outcome.loss.backward()
    case = f"csimclr_ke{kappa_e}_kb{kappa_b}_beta{beta}"
    agrees(case, loss=outcome.loss, grad=hidden.grad, **outcome.logged)


def test_without_compression_and_sampling_it_is_simclr():
    hidden = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    mu = F.normalize(hidden)
    compressed = c_simclr_loss(mu, mu, kappa_e=1024, kappa_b=10, beta=0).loss
    plain = simclr_loss(hidden, temperature=0.1).loss
    assert math.isclose(compressed.item() + 2 * math.log(15), plain.item(), rel_tol=1e-5)


def test_residual_is_an_alignment_penalty_of_known_scale():
    """On average over z, residual(mu, mu') = kappa_b A_d(kappa_e) (1 - mu.mu') + constant."""
    generator = torch.Generator().manual_seed(0)
    method = CSimCLR(8, hidden_dim=4, projection_dim=16, kappa_e=200, kappa_b=10)
    apart = F.normalize(torch.randn(2, 16, generator=generator))
    residuals = []
    for pair in (apart, apart[:1].repeat(2, 1)):
        hidden = pair.repeat_interleave(20_000, dim=0)
        outcome = method(_blocks(hidden), beta=1.0, generator=generator)
        residuals.append(outcome.logged["i_xzx_y"].item())
    expected = 10 * mean_cosine(16, 200) * (1 - (apart[0] @ apart[1]).item())
    assert math.isclose(residuals[0] - residuals[1], expected, rel_tol=0.02)


def _blocks(hidden):
    """Let the contrast, which is not looked at here, see rows of few images only."""
    return hidden[:: len(hidden) // 2000]


def test_a_generator_decides_the_samples():
    method = CSimCLR(8, hidden_dim=4, projection_dim=16)
    hidden = torch.randn(8, 16)
    losses = [
        method(hidden, beta=1.0, generator=torch.Generator().manual_seed(seed)).loss.item()
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("kappas", [{"kappa_e": 0.0}, {"kappa_b": -1.0}, {"kappa_e": math.nan}])
def test_concentrations_must_be_positive(kappas):
    with pytest.raises(DistillError, match=next(iter(kappas))):
        CSimCLR(8, **kappas)
