"""Statistics over seeds: means with intervals, and paired comparisons.

The seed is the unit. A seed decides the data, the initial weights and the mini-batches on every split, so its results
on several splits are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from fedpisa.components import total
from fedpisa.plots.intervals import LEVEL, mean_interval

SIGNIFICANCE = round(1 - LEVEL, 12)
"""Level of the tests."""
POWER = 0.8
"""Power at which `seeds_needed` counts seeds."""
POINT = 0.01
"""A percentage point of accuracy."""
EXACT_PAIRS = 13
"""Number of pairs up to which the signed-rank test enumerates all signs; it is then exact also with ties."""


@final
@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Parameters
    ----------
    n
        Number of values.
    mean
        Mean of the values.
    sd
        Sample standard deviation, with ``n - 1``; ``None`` for a single value.
    low, high
        Ends of the 95% interval of the mean; ``None`` for a single value.
    """

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


def estimate(values: Sequence[float], *, share: bool = False) -> Estimate | None:
    """Return the mean, deviation and 95% interval of values; ``None`` if there are none.

    Parameters
    ----------
    values
        One value per seed.
    share
        Whether the values are shares, such as accuracies, so that the interval stays in [0, 1]; see
        `fedpisa.plots.intervals.mean_interval`.

    Examples
    --------
    >>> found = estimate([1.0, 2.0, 3.0])
    >>> round(found.high - found.mean, 4)  # 4.303 / sqrt(3)
    2.4841
    >>> estimate([0.5])
    Estimate(n=1, mean=0.5, sd=None, low=None, high=None)
    """
    n = len(values)
    if n == 0:
        return None
    mean = total(values) / n
    if n == 1:
        return Estimate(1, mean)
    # For equal values, numpy's deviation can be a rounding error instead of 0.
    sd = float(np.std(values, ddof=1)) if len(set(values)) > 1 else 0.0
    low, high = mean_interval(mean, sd, n, share=share)
    return Estimate(n, mean, sd, float(low), float(high))


def scaled(value: Estimate | None, factor: float) -> Estimate | None:
    """Return an estimate of the values times a positive factor."""
    if value is None:
        return None
    sd, low, high = (None if part is None else factor * part for part in (value.sd, value.low, value.high))
    return Estimate(value.n, factor * value.mean, sd, low, high)


@final
@dataclass(frozen=True)
class Comparison:
    """Two algorithms on the same seeds.

    Parameters
    ----------
    difference
        First minus second; ``None`` if they have no common seed.
    t_p
        Two-sided p-value of the paired t-test; ``None`` for fewer than two pairs. For equal differences, it is that of
        the signed-rank test.
    wilcoxon_p
        Two-sided p-value of Wilcoxon's signed-rank test; ``None`` for fewer than two pairs.
    t_holm, wilcoxon_holm
        The p-values after Holm's correction over the family of comparisons.
    """

    difference: Estimate | None
    t_p: float | None = None
    wilcoxon_p: float | None = None
    t_holm: float | None = None
    wilcoxon_holm: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the corrected t-test rejects equality at 5%."""
        return self.t_holm is not None and self.t_holm < SIGNIFICANCE

    @property
    def seeds_for_a_point(self) -> int | None:
        """Seeds that a difference of one percentage point would need; see `seeds_needed`."""
        sd = self.difference.sd if self.difference else None
        return None if sd is None else seeds_needed(sd, POINT)


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare paired values, without a correction for multiple comparisons.

    For equal differences other than 0, t is infinite. This shows a coarse measure rather than strong evidence, so the
    exact signed-rank test decides instead: its p-value is ``2^(1-n)``.

    Examples
    --------
    >>> found = compare([0.91, 0.92, 0.93], [0.90, 0.90, 0.90])
    >>> round(found.t_p, 4), found.wilcoxon_p
    (0.0742, 0.25)
    """
    from scipy import stats

    # Values are fractions of a test set; rounding removes floating-point noise from equal differences.
    differences = [round(a - b, 12) for a, b in zip(first, second, strict=True)]
    found = estimate(differences)
    if found is None or found.n < 2:
        return Comparison(found)
    if not any(differences):
        return Comparison(found, t_p=1.0, wilcoxon_p=1.0)
    method = stats.PermutationMethod() if found.n <= EXACT_PAIRS else "auto"
    wilcoxon_p = float(stats.wilcoxon(differences, method=method).pvalue)
    if len(set(differences)) == 1:
        equal_p = smallest_wilcoxon_p(found.n)
        return Comparison(found, equal_p, equal_p)
    return Comparison(found, float(stats.ttest_1samp(differences, 0.0).pvalue), wilcoxon_p)


def seed_means(by_split: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Return each seed's mean over the splits, for the seeds that have a value on every split.

    A comparison over all splits takes these means as its pairs. A seed's differences on several splits are correlated,
    so they are one observation and not several: to count them as independent would reject true null hypotheses too
    often. If every seed has every split, the t-test of the means is the exact F test of the mixed model with seeds as
    blocks. An exact sign-flip test of whole seeds would assume less, but with fewer than six seeds its p-value cannot
    be below 0.05. It is the signed-rank test's companion in the report.

    Parameters
    ----------
    by_split
        A variant's value by seed, for each split.

    Examples
    --------
    >>> seed_means([{0: 0.5, 1: 0.25}, {0: 1.0, 1: 0.75, 2: 0.9}])
    {0: 0.75, 1: 0.5}
    """
    seeds = [seed for seed in by_split[0] if all(seed in values for values in by_split)]
    return {seed: total(values[seed] for values in by_split) / len(by_split) for seed in seeds}


def seeds_needed(sd: float, difference: float) -> int | None:
    """Return the least number of pairs with which a paired t-test finds a difference with power `POWER`.

    The test is two-sided at 5%, without Holm's correction. With ``n`` pairs its power is ``P(|T| > t)``. Here ``T`` has
    the noncentral t distribution with ``n - 1`` degrees of freedom and noncentrality ``sqrt(n) difference / sd``, and
    ``t`` is the central quantile.

    Parameters
    ----------
    sd
        Deviation of the paired differences, as observed. With 0, which says nothing about further seeds, the result is
        ``None``.
    difference
        Difference of the means to find, positive.

    Examples
    --------
    >>> seeds_needed(0.01, 0.01), seeds_needed(0.02, 0.01)
    (10, 34)
    """
    from scipy import stats

    if sd <= 0:
        return None
    effect = difference / sd
    # The normal approximation is never more than the answer; the t distribution adds about two pairs to it.
    normal = float(stats.norm.ppf(1 - SIGNIFICANCE / 2) + stats.norm.ppf(POWER))
    n = max(2, math.floor((normal / effect) ** 2))
    while power(n, effect) < POWER:
        n += 1
    return n


def power(n: int, effect: float) -> float:
    """Return the power of the two-sided paired t-test at 5% with ``n`` pairs.

    Parameters
    ----------
    n
        Number of pairs, at least two.
    effect
        Mean difference divided by the deviation of the differences.

    Examples
    --------
    >>> round(power(10, 1.0), 4)
    0.8031
    """
    from scipy import stats

    quantile = stats.t.ppf(1 - SIGNIFICANCE / 2, n - 1)
    shift = math.sqrt(n) * effect
    return float(stats.nct.sf(quantile, n - 1, shift) + stats.nct.cdf(-quantile, n - 1, shift))


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return a family of comparisons with Holm's correction, for each of the two tests."""
    t = holm([one.t_p for one in comparisons])
    wilcoxon = holm([one.wilcoxon_p for one in comparisons])
    return [
        Comparison(one.difference, one.t_p, one.wilcoxon_p, a, b)
        for one, a, b in zip(comparisons, t, wilcoxon, strict=True)
    ]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values with Holm's step-down correction; ``None`` (too few pairs for a test) does not count.

    Sorted, the i-th of m becomes ``max_{j <= i} min(1, (m - j + 1) p_j)``.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03, None])
    [0.03, 0.06, 0.06, None]
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    result: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        result[place] = largest
    return result


def smallest_wilcoxon_p(n: int) -> float:
    """Return the smallest two-sided p-value of the signed-rank test with ``n`` pairs, ``2^(1-n)``.

    Examples
    --------
    >>> smallest_wilcoxon_p(3), smallest_wilcoxon_p(6)
    (0.25, 0.03125)
    """
    return float(2.0 ** (1 - n))
