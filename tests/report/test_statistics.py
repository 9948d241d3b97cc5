"""Means, intervals and tests against closed forms and scipy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from fedpisa.report.statistics import compare, corrected, estimate, holm, smallest_wilcoxon_p

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_interval_is_students(n: int) -> None:
    values = RNG.normal(0.9, 0.02, n)
    found = estimate(values.tolist())
    assert found is not None
    assert found.sd is not None
    assert found.half_width is not None
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert found.sd == pytest.approx(np.sqrt(((values - values.mean()) ** 2).sum() / (n - 1)))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))


def test_two_values_in_closed_form() -> None:
    found = estimate([0.0, 2.0])  # t_1 at 97.5% is tan(0.475 pi)
    assert found is not None
    assert found.half_width == pytest.approx(np.tan(0.475 * np.pi))


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    single = estimate([0.9])
    assert single is not None
    assert (single.n, single.mean, single.sd, single.half_width) == (1, 0.9, None, None)
    assert estimate([]) is None


def test_equal_values_deviate_by_nought_exactly() -> None:
    found = estimate([3.1216, 3.1216, 3.1216])
    assert found is not None
    assert (found.sd, found.half_width) == (0.0, 0.0)


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
    assert (shifted.t_p, shifted.wilcoxon_p) == (None, 0.25)


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
