"""Epsilon and delta of Gaussian noise on a sum, after any number of rounds.

Without sampling, ``k`` releases with noise multiplier ``z`` are one release with ``mu = sqrt(k) / z``, the sensitivity
divided by the noise. Its epsilon is exact: Balle and Wang, Improving the Gaussian Mechanism for Differential Privacy
(2018), Theorem 8. A client's increment is replaced by 0 or the other way round, which changes the sum by at most the
clipping norm.

With secret cohorts, a cohort is a uniform sample of fixed size without replacement. Theorems on Poisson sampling do not
hold for it. Wang, Balle and Kasiviswanathan (2019) bound its Renyi divergence if one client is replaced by another,
which changes the sum by at most twice the clipping norm. The package dp-accounting computes the bound.
"""

from __future__ import annotations

import math
from typing import Final

ORDERS: Final = (*range(2, 65), 80, 96, 128, 192, 256)
"""The orders of the Renyi divergence."""
LEAST: Final = 1e-3
MOST: Final = 4096.0
"""The noise multipliers between which the Renyi divergence is computed."""


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Return the least delta of one Gaussian release: ``Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu)``.

    Examples
    --------
    >>> round(gaussian_delta(1.0, 1.0), 6)
    0.126937
    """
    from scipy.special import log_ndtr

    first, second = float(log_ndtr(mu / 2 - epsilon / mu)), float(log_ndtr(-mu / 2 - epsilon / mu))
    # Without this, an epsilon or mu whose square overflows would give NaN.
    return 0.0 if first == -math.inf else math.exp(first) * -math.expm1(min(epsilon + second - first, 0.0))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the least epsilon of one Gaussian release at ``delta``, rounded up in its last bits.

    Examples
    --------
    >>> round(gaussian_epsilon(1.0, 1e-5), 4)
    4.3772
    """
    if mu == math.inf:
        return math.inf
    if mu == 0 or gaussian_delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(-2 * math.log(delta))
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if gaussian_delta(middle, mu) > delta else (low, middle)
    return high


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest ``mu`` whose release has at most ``epsilon`` at ``delta``.

    Examples
    --------
    >>> round(gaussian_mu(gaussian_epsilon(0.7, 1e-6), 1e-6), 9)
    0.7
    """
    low, high = 0.0, 1.0
    while gaussian_delta(epsilon, high) <= delta:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if gaussian_delta(epsilon, middle) <= delta else (low, middle)
    return low


def sampled_epsilon(
    noise_multiplier: float, num_clients: int, cohort: int, rounds: int, delta: float
) -> float:
    """Return the Renyi bound on epsilon of ``rounds`` releases, each of a secret cohort of fixed size.

    Raises
    ------
    ValueError
        If the package dp-accounting is missing.
    """
    try:
        from dp_accounting import GaussianDpEvent, NeighboringRelation, SampledWithoutReplacementDpEvent
        from dp_accounting.rdp import RdpAccountant
    except ModuleNotFoundError:
        raise ValueError(
            "amplification = true needs the package dp-accounting: pip install 'fedpisa[privacy]'"
        ) from None
    if noise_multiplier < LEAST:
        return math.inf
    accountant = RdpAccountant(ORDERS, NeighboringRelation.REPLACE_ONE)
    release = GaussianDpEvent(min(noise_multiplier, MOST) / 2)  # more noise gives no larger epsilon
    accountant.compose(SampledWithoutReplacementDpEvent(num_clients, cohort, release), rounds)
    return float(accountant.get_epsilon(delta))


def sampled_noise_multiplier(
    epsilon: float, num_clients: int, cohort: int, rounds: int, delta: float
) -> float:
    """Return a noise multiplier whose `sampled_epsilon` is at most ``epsilon`` and close to it.

    Raises
    ------
    ValueError
        If the bound is larger with any noise.
    """

    def spent(noise_multiplier: float) -> float:
        return sampled_epsilon(noise_multiplier, num_clients, cohort, rounds, delta)

    if (least := spent(MOST)) > epsilon:
        raise ValueError(
            f"epsilon = {epsilon:g} is below {least:.3g}, the least bound at delta = {delta:g} with amplification = "
            "true: raise epsilon or delta, or set amplification = false"
        )
    high = 1.0
    while spent(high) > epsilon:
        high *= 2
    low = high / 2 if high > 1 else 0.01
    while high / low > 1 + 1e-5:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spent(middle) > epsilon else (low, middle)
    return high
