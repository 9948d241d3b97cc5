"""Statistics over seeds: means with intervals, and paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

LEVEL = 0.95
"""Level of the confidence intervals; a difference is significant at ``1 - LEVEL``."""
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
    # For equal values, numpy's deviation can be a rounding error instead of 0.
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
        First minus second; ``None`` if they have no common seed.
    t_p
        Two-sided p-value of the paired t-test; ``None`` for fewer than two pairs, or if all differences are equal
        and not 0, because the deviation is then 0.
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
        return self.t_holm is not None and self.t_holm < 1 - LEVEL


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare paired values, without a correction for multiple comparisons.

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
    # For equal differences t is infinite, which shows a coarse measure rather than strong evidence.
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
    """Return p-values with Holm's step-down correction; ``None`` (no test) does not count in the family.

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
