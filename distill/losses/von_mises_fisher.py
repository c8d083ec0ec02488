"""Modified Bessel functions of the first kind for von Mises-Fisher distributions, in float64.

With nu = d / 2 - 1 a density on the unit sphere in d dimensions needs log I_nu(kappa) and the ratio
r_nu = I_{nu+1}(kappa) / I_nu(kappa). Ratios satisfy r_n = 1 / (2 (n + 1) / x + r_{n+1}) (DLMF
10.29.1), which is stable towards lower orders and forgets an error in its start; the product of the
ratios below nu times I_0 or I_{1/2} is I_nu itself. That one formula holds for all orders and
arguments, where `scipy.special.ive` underflows (order 127 at 0.1, order 2047 at 1000) and
expansions for large orders or large arguments need seams. What is carried along is x (1 - r_n),
since 1 - r_n loses its digits at a large x.

The von Mises-Fisher distribution on the unit sphere: densities, information and samples.

log vMF(z; mu, kappa) = kappa mu . z + log C_d(kappa) for unit z and mu in d >= 2 dimensions, with
log C_d = (d/2 - 1) log kappa - (d/2) log(2 pi) - log I_{d/2-1}(kappa) and the mean cosine
A_d = E[mu . z] = I_{d/2}(kappa) / I_{d/2-1}(kappa) (Mardia and Jupp, Directional Statistics, 2000,
section 9.3.2). A kappa is a constant: a Python float, positive and finite. Everything is in nats.

Densities are kappa (cosine - 1) + (log C_d + kappa), the bracket in float64: at kappa 1e5 the plain
form subtracts numbers near 1e5, which float32 holds to 4e-3.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.errors import DistillError

# The start is the better the higher its order and argument, and each step forgets a share of its
# error. The steps are capped, as a start at an argument over 2.5e7 needs no more of them.
_EXTRA_STEPS, _STEPS_PER_ROOT, _MOST_STEPS = 20, 4.0, 20_000


class Bessel(NamedTuple):
    """What a density needs of I_nu(x), each without the cancellation that a plain value has.

    Attributes:
        log_peak: nu log x - log(I_nu(x) exp(-x)): finite for every x > 0.
        ratio: I_{nu+1}(x) / I_nu(x), in (0, 1).
        deficit: x (1 - ratio), in (0, nu + 1).
    """

    log_peak: float
    ratio: float
    deficit: float


@lru_cache(maxsize=256)
def bessel(twice_order: int, x: float) -> Bessel:
    """Evaluate I_nu and I_{nu+1} at x for nu = `twice_order` / 2.

    Args:
        twice_order: Integer >= 0. Time grows with it: 1 ms at 4094.
        x: Positive and finite.

    Returns:
        Right to 1e-14 (log_peak, ratio) and 1e-11 (deficit) for orders to 2047 and x from 0.1 to
        1e7: relative errors, except an absolute one where log_peak is within 1 of 0.
    """
    lowest, order = twice_order % 2 / 2, twice_order / 2
    steps = _EXTRA_STEPS + int(min(_STEPS_PER_ROOT * math.sqrt(x), _MOST_STEPS))
    deficit = _start(order + steps, x)
    at_order, log_ratios = (0.0, 0.0), []
    for step in range(steps + twice_order // 2 - 1, -1, -1):
        n = lowest + step
        rest = 2 * (n + 1) - deficit
        ratio = x / (x + rest)
        deficit = rest * ratio
        if n == order:
            at_order = ratio, deficit
        elif n < order:
            log_ratios.append(-math.log(x + rest))  # log(ratio / x)
    return Bessel(_log_lowest_peak(lowest, x) - math.fsum(log_ratios), *at_order)


def _start(order: float, x: float) -> float:
    """Approximate the deficit at a high order.

    The ratio r solves the Riccati equation r' = 1 - r^2 - (2 a / x) r with a = order + 1/2. Its
    root for r' = 0 is exp(-asinh(a / x)); a Newton step puts the derivative of that root for r'.
    """
    a = order + 0.5
    minus_log = math.asinh(a / x)
    length = math.hypot(a, x)
    correction = x / length * math.exp(-minus_log) * (a / length) / 2
    return correction - x * math.expm1(-minus_log)


def _log_lowest_peak(order: float, x: float) -> float:
    """Return `log_peak` of order 0 or 1/2, where I_{1/2}(x) = sqrt(2 / (pi x)) sinh x."""
    if order == 0:
        from scipy.special import i0e

        return -math.log(i0e(x))
    return 0.5 * math.log(2 * math.pi) + math.log(x) - math.log(-math.expm1(-2 * x))


# Each is accepted with probability over 0.65, so all of them fail in fewer than 1e-14 of the rows.
_CANDIDATES = 32


def check_kappa(name: str, kappa: float) -> None:
    """Raise `DistillError` unless a concentration is positive and finite."""
    if not (math.isfinite(kappa) and kappa > 0):
        raise DistillError(f"{name} is {kappa}; it must be positive and finite")


def log_normalizer(dim: int, kappa: float) -> float:
    """Return log C_d(kappa), the log density at right angles to the mean direction.

    Args:
        dim: d, the width of the vectors, >= 2.
        kappa: Positive and finite.

    Returns:
        Nats; right to 1e-13 relative (2e-11 absolute near its zeros) for d to 4096 and kappa from
        0.1 to 1e5. Cached.

    Raises:
        DistillError: `dim` or `kappa` is out of range.
    """
    return _log_peak(dim, kappa) - kappa


def mean_cosine(dim: int, kappa: float) -> float:
    """Return A_d(kappa) in (0, 1): the expected cosine of a sample with the mean direction.

    Arguments and errors as for `log_normalizer`.
    """
    _check("kappa", dim, kappa)
    return bessel(dim - 2, kappa).ratio


def entropy(dim: int, kappa: float) -> float:
    """Return the differential entropy -log C_d - kappa A_d, in nats; negative for narrow ones.

    It is computed as -(log C_d + kappa) + kappa (1 - A_d), whose terms do not cancel at a large
    kappa. Arguments and errors as for `log_normalizer`.
    """
    peak = _log_peak(dim, kappa)
    return bessel(dim - 2, kappa).deficit - peak


def log_density(z: Tensor, mean_direction: Tensor, kappa: float) -> Tensor:
    """Return log vMF(z; mean_direction, kappa); differentiable in both tensors.

    1 - cosine is taken as half the squared distance, which float32 holds to its last digits where
    the cosine itself nears 1. The gradients therefore differ from those of kappa mu . z along z
    and mu, where unit vectors cannot move.

    Args:
        z: Unit vectors, (..., D), any float dtype.
        mean_direction: Unit vectors, (..., D); leading dimensions broadcast.
        kappa: Positive and finite.

    Returns:
        Nats, (...), float32 or wider.

    Raises:
        DistillError: The widths differ or are below 2, or `kappa` is out of range.
    """
    dim = z.shape[-1]
    if mean_direction.shape[-1] != dim:
        raise DistillError(
            f"z is {dim} wide and mean_direction {mean_direction.shape[-1]}; they must be as wide"
        )
    peak = _log_peak(dim, kappa)
    return peak - kappa / 2 * (_widened(z) - _widened(mean_direction)).square().sum(-1)


def log_density_of_cosine(cosine: Tensor, dim: int, kappa: float) -> Tensor:
    """Turn cosines of samples with mean directions into log densities.

    Args:
        cosine: In [-1, 1], any shape and float dtype. Its rounding comes back times `kappa`: at
            1e5 a float32 cosine near 1 gives 0.006; `log_density` has no such error.
        dim: Width of the vectors, >= 2.
        kappa: Positive and finite.

    Returns:
        Nats, of `cosine`'s shape, float32 or wider.

    Raises:
        DistillError: `dim` or `kappa` is out of range.
    """
    return kappa * (_widened(cosine) - 1) + _log_peak(dim, kappa)


def expected_residual(cosine: Tensor, dim: int, kappa_e: float, kappa_b: float) -> Tensor:
    """Return E[log vMF(z; mu_x, kappa_e) - log vMF(z; mu_y, kappa_b)] over z ~ vMF(mu_x, kappa_e).

    That is KL(e || b), kappa_b A_d(kappa_e) (1 - cosine) + `residual_constant`: the expectation of
    what a sample measures, without a sample's noise.

    Args:
        cosine: mu_x . mu_y in [-1, 1], any shape and float dtype.
        dim: Width of the vectors, >= 2.
        kappa_e: Of the distribution that z comes from, positive and finite.
        kappa_b: Of the other, positive and finite.

    Returns:
        Nats, of `cosine`'s shape, float32 or wider.

    Raises:
        DistillError: `dim` or a kappa is out of range.
    """
    constant = residual_constant(dim, kappa_e, kappa_b)
    return kappa_b * mean_cosine(dim, kappa_e) * (1 - _widened(cosine)) + constant


def residual_constant(dim: int, kappa_e: float, kappa_b: float) -> float:
    """Return `expected_residual` at cosine 1: >= 0, and 0 for equal kappas. Nats.

    Arguments and errors as for `expected_residual`.
    """
    _check("kappa_e", dim, kappa_e)
    _check("kappa_b", dim, kappa_b)
    e, b = bessel(dim - 2, kappa_e), bessel(dim - 2, kappa_b)
    return e.log_peak - b.log_peak - (1 - kappa_b / kappa_e) * e.deficit


def sample(
    mean_direction: Tensor, kappa: float, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw one sample per mean direction.

    The cosine comes from Wood's rejection scheme (Simulation of the von Mises Fisher distribution,
    1994), the rest is a uniform direction at right angles; a reflection moves their pole to the
    mean direction (Davidson et al., Hyperspherical Variational Auto-Encoders, 2018), and through it
    the gradient flows. The pole is plus or minus the first axis, whichever is further away, so the
    reflection is defined for every mean direction. Nothing waits for the device.

    Args:
        mean_direction: Unit vectors, B x D with D >= 2, any float dtype.
        kappa: Positive and finite.
        generator: Of `mean_direction`'s device; torch's global one by default.

    Returns:
        Unit vectors, B x D, float32 or wider; a generator's state fixes them.

    Raises:
        DistillError: `mean_direction` is no matrix, D is below 2, or `kappa` is out of range.
    """
    if mean_direction.dim() != 2:
        raise DistillError(
            f"mean_direction has shape {tuple(mean_direction.shape)}; it must be a matrix, B x D"
        )
    mean = _widened(mean_direction)
    rows, dim = mean.shape
    _check("kappa", dim, kappa)
    with torch.no_grad():
        deficit = _sample_deficit(rows, dim, kappa, mean.device, generator)
        # A circle's side is one number, which float32 would draw as 0 once in 2^24.
        dtype = torch.float64 if dim == 2 else mean.dtype
        tangent = torch.randn(rows, dim - 1, dtype=dtype, device=mean.device, generator=generator)
        across = (deficit * (2 - deficit)).sqrt() * F.normalize(tangent)
        side = 1 - 2 * (mean[:, :1] > 0).to(mean.dtype)
        local = torch.cat((side * (1 - deficit), across), dim=1).to(mean.dtype)
        pole = F.pad(side, (0, dim - 1))
    return _reflect(local, mean - pole)


def _sample_deficit(
    rows: int, dim: int, kappa: float, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Draw 1 - cosine, rows x 1 in float64, by Wood's scheme.

    His beta variable is the first of two gamma variables divided by their sum; with both at hand
    1 - W needs no subtraction. His acceptance test at 1 - W = proposal simplifies as below, since
    his b satisfies kappa = (d - 1) (1 - b^2) / (4 b). The first accepted candidate wins.
    """
    b = (dim - 1) / (2 * kappa + math.hypot(2 * kappa, dim - 1))
    shape = torch.full((rows, _CANDIDATES), (dim - 1) / 2, dtype=torch.float64, device=device)
    first = torch._standard_gamma(shape, generator=generator)
    second = torch._standard_gamma(shape, generator=generator)
    proposal = 2 * b * first / (second + b * first)
    excess = kappa / (dim - 1) * (proposal - 2 * b / (1 + b))
    log_uniform = torch.empty_like(shape).uniform_(generator=generator).log_()
    accepted = (dim - 1) * (excess.log1p() - excess) >= log_uniform
    return proposal.gather(1, accepted.byte().argmax(dim=1, keepdim=True))


def _reflect(vectors: Tensor, normal: Tensor) -> Tensor:
    """Reflect rows at the hyperplanes at right angles to `normal`, which need not be unit."""
    share = (vectors * normal).sum(1, keepdim=True) / normal.square().sum(1, keepdim=True)
    return vectors - 2 * share * normal


def _log_peak(dim: int, kappa: float) -> float:
    """Return log C_d + kappa, the log density at the mode."""
    _check("kappa", dim, kappa)
    return bessel(dim - 2, kappa).log_peak - dim / 2 * math.log(2 * math.pi)


def _check(name: str, dim: int, kappa: float) -> None:
    if dim < 2:
        raise DistillError(f"the width is {dim}; a von Mises-Fisher distribution needs 2 or more")
    check_kappa(name, kappa)


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(torch.float32, values.dtype))
