"""Modified Bessel functions of the first kind for von Mises-Fisher distributions, in float64.

With nu = d / 2 - 1 a density on the unit sphere in d dimensions needs log I_nu(kappa) and the ratio
r_nu = I_{nu+1}(kappa) / I_nu(kappa). Ratios satisfy r_n = 1 / (2 (n + 1) / x + r_{n+1}) (DLMF
10.29.1), which is stable towards lower orders and forgets an error in its start; the product of the
ratios below nu times I_0 or I_{1/2} is I_nu itself. That one formula holds for all orders and
arguments, where `scipy.special.ive` underflows (order 127 at 0.1, order 2047 at 1000) and
expansions for large orders or large arguments need seams. What is carried along is x (1 - r_n),
since 1 - r_n loses its digits at a large x.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

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
