"""The noised mean of clipped increments: its formula, its sensitivity, its last bits, and its noise's source."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from fedpisa.server.privacy import GRID_BITS, PrivateMean, noised_mean, secretly_sampled, secure_normal

VECTORS = arrays(np.float64, (3, 5), elements=st.floats(-1e6, 1e6))


def reference(
    centre: np.ndarray, uploads: np.ndarray, asked: int, norm: float, multiplier: float, noise: np.ndarray
) -> np.ndarray:
    increments = uploads - centre
    lengths = np.linalg.norm(increments, axis=1, keepdims=True)
    clipped = increments * np.minimum(1, norm / np.maximum(lengths, 1e-300))
    mean: np.ndarray = centre + (clipped.sum(0) + multiplier * norm * noise) / asked
    return mean


@pytest.mark.parametrize(("norm", "multiplier"), [(1.0, 1.0), (0.03, 7.0), (50.0, 0.01), (2.0, 0.0)])
def test_the_mean_is_that_of_numpy(norm: float, multiplier: float) -> None:
    rng = np.random.default_rng(1)
    centre, uploads, noise = rng.normal(size=40), rng.normal(size=(6, 40)), rng.normal(size=40)
    uploads[2] = centre
    got = noised_mean(torch.from_numpy(centre), torch.from_numpy(uploads), 8, norm, multiplier, noise)
    assert np.abs(got.numpy() - reference(centre, uploads, 8, norm, multiplier, noise)).max() < 1e-11 * max(
        1, norm
    )
    if norm * max(1, multiplier) < 2:
        assert np.abs(got.numpy() - reference(centre, uploads, 8, norm, multiplier, noise)).max() < 1e-12


@given(VECTORS, st.floats(0.01, 100))
@settings(deadline=None)
def test_one_client_changes_the_sum_by_at_most_the_norm(uploads: np.ndarray, norm: float) -> None:
    """Whether its increment becomes 0 or its reply is lost; replaced by another, by at most twice the norm."""
    zero, still = torch.zeros(5, dtype=torch.float64), np.zeros(5)

    def total(rows: np.ndarray) -> np.ndarray:
        return 3 * noised_mean(zero, torch.from_numpy(rows), 3, norm, 1.0, still).numpy()

    without = uploads.copy()
    without[0] = 0
    assert np.linalg.norm(total(uploads) - total(without)) <= norm * (1 + 1e-9)
    assert np.array_equal(total(without), total(uploads[1:]))
    replaced = uploads.copy()
    replaced[0] = -uploads[0]
    assert np.linalg.norm(total(uploads) - total(replaced)) <= 2 * norm * (1 + 1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_client_that_is_not_finite_counts_as_one_that_stayed(bad: float) -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    uploads = torch.tensor([[bad, 1.0], [1.0, 0.0]], dtype=torch.float64)
    assert noised_mean(zero, uploads, 2, 1.0, 1.0, np.zeros(2)).tolist() == [0.5, 0.0]


def test_the_last_bits_say_nothing() -> None:
    """The released sum is an integer multiple of the grid for any data (Mironov 2012)."""
    rng = np.random.default_rng(2)
    zero, noise = torch.zeros(1000, dtype=torch.float64), rng.normal(size=1000)
    for scale in (0.0, 1e-9, 1.0):
        uploads = torch.from_numpy(scale * rng.normal(size=(4, 1000)))
        units = noised_mean(zero, uploads, 4, 1.0, 1.0, noise).numpy() * 4 * 2.0**GRID_BITS
        assert np.array_equal(units, np.rint(units))
        assert 0.4 < (units % 2).mean() < 0.6


def test_the_operating_systems_noise_is_normal() -> None:
    draws = secure_normal(200_000)
    assert stats.kstest(draws, "norm").pvalue > 1e-5
    assert abs(draws.mean()) < 5 / np.sqrt(draws.size)
    assert draws.std() == pytest.approx(1, abs=0.01)
    halves = draws.reshape(2, -1)
    assert abs(np.corrcoef(halves)[0, 1]) < 5 / np.sqrt(halves.shape[1])


def test_noise_repeats_with_a_seed_only() -> None:
    centre, uploads = torch.zeros(50), torch.ones(3, 50)
    seeded, secure = PrivateMean(1.0, 1.0, seed=4), PrivateMean(1.0, 1.0)
    first, again = (seeded(1, centre, uploads, 3) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, seeded(2, centre, uploads, 3))
    assert not torch.equal(secure(1, centre, uploads, 3), secure(1, centre, uploads, 3))


def test_secret_cohorts_are_uniform() -> None:
    counts = np.zeros(6)
    for _ in range(3000):
        cohort = secretly_sampled(range(6), 2)
        assert cohort == sorted(set(cohort))
        counts[cohort] += 1
    assert stats.chisquare(counts).pvalue > 1e-6
