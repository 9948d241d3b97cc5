"""Epsilon against independent computations: mpmath, dp-accounting's Renyi bound and its privacy loss distributions."""

from __future__ import annotations

import math

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpisa.server.privacy_accounting import (
    ORDERS,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    sampled_epsilon,
    sampled_noise_multiplier,
)

MU = st.floats(0.01, 30)
DELTA = st.floats(1e-12, 0.1)


def exact_delta(epsilon: mpmath.mpf, mu: mpmath.mpf) -> mpmath.mpf:
    """Balle and Wang (2018), Theorem 8, with sensitivity / sigma = mu, at 60 digits."""
    first, second = mpmath.ncdf(mu / 2 - epsilon / mu), mpmath.ncdf(-mu / 2 - epsilon / mu)
    return first - mpmath.exp(epsilon) * second


def exact_epsilon(mu: float, delta: float) -> float:
    with mpmath.workdps(60):
        low, high = mpmath.mpf(0), mpmath.mpf(1)
        if exact_delta(low, mpmath.mpf(mu)) <= delta:
            return 0.0
        while exact_delta(high, mpmath.mpf(mu)) > delta:
            high *= 2
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if exact_delta(middle, mpmath.mpf(mu)) > delta else (low, middle)
        return float(high)


@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-10])
@pytest.mark.parametrize("mu", [1e-3, 0.03, 0.5, 1.0, 1.5, 4.0, 20.0])
def test_epsilon_is_that_of_balle_and_wang(mu: float, delta: float) -> None:
    wanted = exact_epsilon(mu, delta)
    assert gaussian_epsilon(mu, delta) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@given(MU, DELTA)
@settings(deadline=None)
def test_epsilon_is_the_least_that_delta_allows(mu: float, delta: float) -> None:
    epsilon = gaussian_epsilon(mu, delta)
    assert gaussian_delta(epsilon, mu) <= delta * (1 + 1e-9)
    assert epsilon == 0 or gaussian_delta(epsilon * (1 - 1e-6), mu) > delta


@given(MU, st.floats(1.001, 10), DELTA, st.floats(1.001, 5))
@settings(deadline=None)
def test_more_rounds_less_noise_and_a_smaller_delta_cost_more(
    mu: float, more: float, delta: float, smaller: float
) -> None:
    assert gaussian_epsilon(mu * more, delta) >= gaussian_epsilon(mu, delta)
    assert gaussian_epsilon(mu, delta / smaller) >= gaussian_epsilon(mu, delta)


@given(st.floats(0.01, 50), DELTA)
@settings(deadline=None)
def test_a_target_comes_back(epsilon: float, delta: float) -> None:
    mu = gaussian_mu(epsilon, delta)
    assert gaussian_epsilon(mu, delta) == pytest.approx(epsilon, rel=1e-6)
    assert gaussian_delta(epsilon, mu) <= delta


SAMPLED = [
    (1.0, 100, 10, 50, 1e-5),
    (4.0, 1000, 10, 200, 1e-6),
    (8.0, 20, 10, 5, 1e-5),
    (0.7, 500, 5, 10, 1e-4),
]


@pytest.mark.parametrize(("noise", "clients", "cohort", "rounds", "delta"), SAMPLED)
def test_secret_cohorts_cost_what_dp_accounting_says(
    noise: float, clients: int, cohort: int, rounds: int, delta: float
) -> None:
    """The Renyi bound of sampling without replacement, of a sum that one client changes by twice the norm."""
    dp = pytest.importorskip("dp_accounting")
    from dp_accounting import pld, rdp

    relation = dp.NeighboringRelation.REPLACE_ONE
    accountant = rdp.RdpAccountant([*ORDERS], relation)
    event = dp.SampledWithoutReplacementDpEvent(clients, cohort, dp.GaussianDpEvent(noise / 2))
    for _ in range(rounds):
        accountant.compose(event)
    got = sampled_epsilon(noise, clients, cohort, rounds, delta)
    assert got == pytest.approx(accountant.get_epsilon(delta), abs=1e-6)
    for neighbours in dp.NeighboringRelation:
        # Its "replace one" takes the noise in units of the norm, and the sum changes by twice that.
        losses = pld.PLDAccountant(neighbours)
        losses.compose(dp.PoissonSampledDpEvent(cohort / clients, dp.GaussianDpEvent(noise)), rounds)
        assert got >= losses.get_epsilon(delta)


def test_all_clients_cost_what_their_privacy_losses_say() -> None:
    dp = pytest.importorskip("dp_accounting")
    from dp_accounting import pld

    losses = pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    losses.compose(dp.GaussianDpEvent(2.0), 9)
    ours = gaussian_epsilon(math.sqrt(9) / 2.0, 1e-5)
    assert ours <= losses.get_epsilon(1e-5) < ours + 1e-3  # its discretisation rounds up


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 40.0])
def test_a_target_with_secret_cohorts_is_kept(epsilon: float) -> None:
    pytest.importorskip("dp_accounting")
    setting = (1000, 20, 30, 1e-5)
    multiplier = sampled_noise_multiplier(epsilon, *setting)
    assert epsilon * (1 - 1e-4) < sampled_epsilon(multiplier, *setting) <= epsilon


@pytest.mark.parametrize("epsilon", [1e-300, 1e-5, 0.01])
def test_a_target_below_the_least_bound_is_refused(epsilon: float) -> None:
    """More noise lowers the bound only to what the largest order gives, so a search for the noise would not end."""
    pytest.importorskip("dp_accounting")
    with pytest.raises(
        ValueError, match=rf"epsilon = {epsilon:g} is below 0\.\d+, the least bound at delta = 1e-05"
    ):
        sampled_noise_multiplier(epsilon, 1000, 20, 30, 1e-5)


@pytest.mark.parametrize("noise", [1e-320, 1e-9])
def test_almost_no_noise_has_no_bound(noise: float) -> None:
    pytest.importorskip("dp_accounting")
    assert sampled_epsilon(noise, 10, 2, 1, 1e-5) == math.inf


@pytest.mark.parametrize("noise", [1e10, 1e300])
def test_more_noise_than_is_computed_costs_no_more(noise: float) -> None:
    pytest.importorskip("dp_accounting")
    assert sampled_epsilon(noise, 10, 2, 1, 1e-5) == sampled_epsilon(4096.0, 10, 2, 1, 1e-5)


@pytest.mark.parametrize("delta", [1e-300, 1e-5, 0.5])
@pytest.mark.parametrize("exponent", [100, 154, 155, 200, 300, 308])
def test_a_huge_target_is_nearly_no_noise(exponent: int, delta: float) -> None:
    """``mu^2 / 2`` tends to epsilon; squares beyond floating point once gave a NaN."""
    epsilon = 10.0**exponent
    assert gaussian_mu(epsilon, delta) == pytest.approx(math.sqrt(2) * math.sqrt(epsilon), rel=1e-6)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(
        ValueError, match=r"needs the package dp-accounting: pip install 'fedpisa\[privacy\]'"
    ):
        sampled_epsilon(1.0, 10, 2, 1, 1e-5)
