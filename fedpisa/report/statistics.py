"""What a few seeds allow one to say: means with intervals, and paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

LEVEL = 0.95
"""Of the confidence intervals; differences are called significant at ``1 - LEVEL``."""
EXACT_PAIRS = 13
"""Pairs up to which the signed-rank test enumerates all signs, so that ties do no harm."""


@final
@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Parameters
    ----------
    n
        Number of values.
    mean
        Their mean.
    sd
        Sample standard deviation, with ``n - 1``; ``None`` for a single value.
    half_width
        Half of Student's confidence interval, ``t_{n-1} sd / sqrt(n)``; ``None`` for a single value.
    """

    n: int
    mean: float
    sd: float | None
    half_width: float | None


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean, deviation and 95% interval of values; ``None`` if there are none.

    Examples
    --------
    >>> round(estimate([1.0, 2.0, 3.0]).half_width, 4)  # 4.303 / sqrt(3)
    2.4841
    >>> estimate([0.5])
    Estimate(n=1, mean=0.5, sd=None, half_width=None)
    """
    from scipy import stats

    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(1, mean, None, None)
    # Of equal values numpy's deviation can be a rounding error instead of nought.
    sd = float(np.std(values, ddof=1)) if len(set(values)) > 1 else 0.0
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, n - 1))
    return Estimate(n, mean, sd, quantile * sd / math.sqrt(n))


def scaled(value: Estimate | None, factor: float) -> Estimate | None:
    """Return an estimate of the values times a factor."""
    if value is None:
        return None
    sd, half = (None if part is None else factor * part for part in (value.sd, value.half_width))
    return Estimate(value.n, factor * value.mean, sd, half)


@final
@dataclass(frozen=True)
class Comparison:
    """Two algorithms on the same seeds.

    Parameters
    ----------
    difference
        Of the first's values less the second's; ``None`` where they share no seed.
    t_p
        Two-sided p-value of the paired t-test; ``None`` for fewer than two pairs, or where all differences
        are the same number, so that they show no spread to measure it by.
    wilcoxon_p
        Two-sided p-value of Wilcoxon's signed-rank test; ``None`` for fewer than two pairs.
    t_holm, wilcoxon_holm
        The same after Holm's correction over the family of comparisons.
    """

    difference: Estimate | None
    t_p: float | None = None
    wilcoxon_p: float | None = None
    t_holm: float | None = None
    wilcoxon_holm: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the corrected t-test rejects equality at 5%."""
        return self.t_holm is not None and self.t_holm < 1 - LEVEL


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare paired values; the correction for several comparisons is `corrected`'s.

    Examples
    --------
    >>> found = compare([0.91, 0.92, 0.93], [0.90, 0.90, 0.90])
    >>> round(found.t_p, 4), found.wilcoxon_p
    (0.0742, 0.25)
    """
    from scipy import stats

    # Values are fractions of a test set: differences that agree but for rounding are the same.
    differences = [round(a - b, 12) for a, b in zip(first, second, strict=True)]
    found = estimate(differences)
    if found is None or found.n < 2:
        return Comparison(found)
    if not any(differences):
        return Comparison(found, t_p=1.0, wilcoxon_p=1.0)
    # Where all differences are alike, t is infinite: no evidence of size zero, but of a coarse measure.
    t_p = None if len(set(differences)) == 1 else float(stats.ttest_1samp(differences, 0.0).pvalue)
    method = stats.PermutationMethod() if found.n <= EXACT_PAIRS else "auto"
    return Comparison(found, t_p, float(stats.wilcoxon(differences, method=method).pvalue))


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return a family of comparisons with Holm's correction, for each of the two tests."""
    t = holm([one.t_p for one in comparisons])
    wilcoxon = holm([one.wilcoxon_p for one in comparisons])
    return [
        Comparison(one.difference, one.t_p, one.wilcoxon_p, a, b)
        for one, a, b in zip(comparisons, t, wilcoxon, strict=True)
    ]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's step-down corrected p-values; a test that could not be done counts in no family.

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
    """Return the least two-sided p-value that ``n`` pairs can give, all differences of one sign: ``2^(1-n)``.

    Examples
    --------
    >>> smallest_wilcoxon_p(3), smallest_wilcoxon_p(6)
    (0.25, 0.03125)
    """
    return float(2.0 ** (1 - n))
