"""Means, intervals and tests equal closed forms and SciPy's values."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import integrate, stats

from fedpisa.plots.intervals import mean_interval
from fedpisa.report.statistics import (
    POWER,
    SIGNIFICANCE,
    Estimate,
    compare,
    corrected,
    estimate,
    holm,
    power,
    seed_means,
    seeds_needed,
    smallest_wilcoxon_p,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_interval_is_students(n: int) -> None:
    values = RNG.normal(0.9, 0.02, n)
    found = estimate(values.tolist())
    assert found is not None
    assert found.sd is not None
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert found.sd == pytest.approx(np.sqrt(((values - values.mean()) ** 2).sum() / (n - 1)))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_two_values_in_closed_form() -> None:
    found = estimate([0.0, 2.0])  # t_1 at 97.5% is tan(0.475 pi)
    assert found is not None
    assert found.high == pytest.approx(1 + np.tan(0.475 * np.pi))


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert estimate([0.9], share=True) == Estimate(1, 0.9, sd=None, low=None, high=None)
    assert estimate([]) is None


def test_equal_values_deviate_by_nought_exactly() -> None:
    found = estimate([3.1216, 3.1216, 3.1216])
    assert found is not None
    assert (found.sd, found.low, found.high) == (0.0, found.mean, found.mean)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
@example([1.0, 1.0])
@example([0.0, 0.0, 0.0])
@example([0.0, 1.0])
@example([1.0, 1.0, 0.999])
@example([5e-324, 0.0])
def test_interval_of_an_accuracy_stays_in_its_range_and_holds_the_mean(values: list[float]) -> None:
    found = estimate(values, share=True)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert all(math.isfinite(number) for number in (found.low, found.mean, found.high))


@given(st.floats(0.05, 0.95), st.floats(1e-6, 1e-3), st.integers(2, 30))
def test_interval_of_an_accuracy_is_students_if_it_is_narrow(mean: float, sd: float, n: int) -> None:
    # The logit is linear over a narrow interval; the remainder is of the second order.
    low, high = mean_interval(mean, sd / n, n)
    ends = mean_interval(mean, sd / n, n, share=True)
    assert ends == pytest.approx((low, high), abs=20 * float(high - low) ** 2 + 1e-12)


@pytest.mark.parametrize(
    ("mean", "total", "n"), [(0.98, 100, 3), (0.98, 100, 5), (0.995, 400, 5), (0.98, 100, 20), (0.5, 100, 5)]
)
def test_interval_covers_an_accuracy_near_one(mean: float, total: int, n: int) -> None:
    values = np.random.default_rng(1).beta(total * mean, total * (1 - mean), (4000, n))
    spread = (values.mean(axis=1), values.std(axis=1, ddof=1), n)
    covered, of_students = (
        float(np.mean((low <= mean) & (mean <= high)))
        for low, high in (mean_interval(*spread, share=share) for share in (True, False))
    )
    assert covered == pytest.approx(0.95, abs=0.015)
    assert covered > of_students + (0.01 if mean > 0.9 else -0.005)


@pytest.mark.parametrize("n", [2, 3, 6, 20])
def test_comparison_is_scipys(n: int) -> None:
    a, b = RNG.normal(0.91, 0.02, n), RNG.normal(0.90, 0.02, n)
    found = compare(a.tolist(), b.tolist())
    assert found.difference is not None
    assert found.difference.mean == pytest.approx((a - b).mean())
    assert found.t_p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-6)
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue)


def test_signed_ranks_with_ties_by_enumeration() -> None:
    differences = [0.01, 0.01, -0.01, 0.03, 0.04]
    ranks = stats.rankdata(np.abs(differences))
    seen = min(ranks[np.array(differences) > 0].sum(), ranks[np.array(differences) < 0].sum())
    least = [
        min(ranks[np.array(signs) > 0].sum(), ranks[np.array(signs) < 0].sum())
        for signs in product((-1, 1), repeat=5)
    ]
    found = compare(differences, [0.0] * 5)
    assert found.wilcoxon_p == pytest.approx(np.mean(np.array(least) <= seen))


@pytest.mark.parametrize("n", range(2, 9))
def test_smallest_p_is_attained_by_differences_of_one_sign(n: int) -> None:
    found = compare([float(k) for k in range(1, n + 1)], [0.0] * n)
    assert found.wilcoxon_p == pytest.approx(smallest_wilcoxon_p(n))


def test_what_cannot_be_tested_is_not() -> None:
    assert compare([], []).difference is None
    one = compare([0.9], [0.8])
    assert (one.t_p, one.wilcoxon_p) == (None, None)
    same = compare([0.9, 0.8], [0.9, 0.8])
    assert (same.t_p, same.wilcoxon_p) == (1.0, 1.0)
    # 0.3 - 0.2 and 0.9 - 0.8 differ by rounding alone, which would give t = 1e16.
    shifted = compare([0.3, 0.9, 0.5], [0.2, 0.8, 0.4])
    assert (shifted.t_p, shifted.wilcoxon_p) == (0.25, 0.25)


@pytest.mark.parametrize("n", [2, 6, 20])
def test_equal_differences_have_the_exact_p_of_the_signs(n: int) -> None:
    for first, second in ((0.9, 0.8), (0.8, 0.9)):
        found = compare([first] * n, [second] * n)
        assert (found.t_p, found.wilcoxon_p) == (2.0 ** (1 - n), 2.0 ** (1 - n))


def test_equal_differences_stay_in_holms_family() -> None:
    drawn = [compare((0.9 + shift + RNG.normal(0, 0.01, 5)).tolist(), [0.9] * 5) for shift in (0.02, 0.03)]
    equal = compare([0.85] * 5, [0.9] * 5)
    for family in (drawn, [*drawn, equal], [*drawn, equal, compare([0.9] * 5, [0.9] * 5)]):
        least = min(one.t_p for one in family if one.t_p is not None)
        adjusted = min(one.t_holm for one in corrected(family) if one.t_holm is not None)
        assert adjusted == pytest.approx(len(family) * least)


def test_a_seed_is_one_observation_on_several_splits() -> None:
    """Two equal algorithms differ by chance from seed to seed, on six splits by correlated amounts."""
    rng, seeds, splits, trials = np.random.default_rng(2), 5, 6, 1000
    own = rng.normal(0, 0.02, (trials, seeds, 1)) + rng.normal(0, 0.01, (trials, seeds, splits))
    pooled = independent = 0
    for differences in own:
        means = seed_means([dict(enumerate(split)) for split in differences.T.tolist()])
        t_p = compare(list(means.values()), [0.0] * seeds).t_p
        assert t_p is not None
        pooled += t_p < SIGNIFICANCE
        independent += stats.ttest_1samp(differences.ravel(), 0).pvalue < SIGNIFICANCE
    low, high = stats.binom.ppf([0.001, 0.999], trials, SIGNIFICANCE)
    assert low <= pooled <= high
    assert independent > 0.3 * trials  # the error that the means avoid


def test_seed_means_by_the_mixed_models_f_test() -> None:
    """With all seeds on all splits, the F test of the algorithm against algorithm x seed is t squared."""
    first, second = RNG.normal(0.9, 0.02, (2, 4, 3))  # splits x seeds
    found = compare(*(list(seed_means([dict(enumerate(s)) for s in v]).values()) for v in (first, second)))
    cells = np.stack([first, second]).mean(axis=1)  # algorithm x seed
    both = cells - cells.mean(axis=1, keepdims=True) - cells.mean(axis=0) + cells.mean()
    ratio = (3 * (cells.mean(axis=1) - cells.mean()) ** 2).sum() / ((both**2).sum() / 2)
    assert found.t_p == pytest.approx(stats.f.sf(ratio, 1, 2))


@pytest.mark.parametrize(("n", "effect"), [(2, 0.5), (5, 1.0), (10, 1.0), (34, 0.5), (500, 0.1)])
def test_power_by_integration(n: int, effect: float) -> None:
    """``T = (Z + shift) / sqrt(chi2 / df)``: the normal tail, integrated over the deviation."""
    quantile, shift = stats.t.ppf(0.975, n - 1), math.sqrt(n) * effect

    def tails(s: float) -> float:
        tail = stats.norm.sf(quantile * s - shift) + stats.norm.cdf(-quantile * s - shift)
        return float(tail * stats.chi.pdf(s * math.sqrt(n - 1), n - 1) * math.sqrt(n - 1))

    expected, _ = integrate.quad(tails, 0, 1 + 12 / math.sqrt(n), epsabs=1e-10, limit=200)
    assert power(n, effect) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("sd", [1e-9, 0.001, 0.005, 0.01, 0.02, 0.05, 0.3])
def test_seeds_needed_are_the_least_with_the_power(sd: float) -> None:
    n = seeds_needed(sd, 0.01)
    assert n is not None
    assert power(n, 0.01 / sd) >= POWER
    assert n == 2 or power(n - 1, 0.01 / sd) < POWER
    assert seeds_needed(0.0, 0.01) is None


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([None, 0.04]) == [None, 0.04]
    assert holm([]) == []


def test_correction_never_lowers_and_keeps_the_order() -> None:
    p_values = RNG.uniform(size=50).tolist()
    adjusted = [p for p in holm(p_values) if p is not None]
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    assert (np.diff(np.array(adjusted)[np.argsort(p_values)]) >= 0).all()


def test_a_family_corrects_both_tests() -> None:
    family = [compare([0.93, 0.92, 0.95], [0.8, 0.81, 0.82]), compare([0.9, 0.8, 0.7], [0.85, 0.9, 0.6])]
    first, second = corrected(family)
    assert first.t_p is not None
    assert first.t_holm == pytest.approx(2 * first.t_p)
    assert second.t_holm == second.t_p
    assert (first.wilcoxon_holm, first.significant, second.significant) == (0.5, True, False)
