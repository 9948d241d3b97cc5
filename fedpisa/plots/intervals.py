"""Confidence intervals of means, for pictures and for the report."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Level of the confidence intervals."""


def mean_interval(
    mean: NDArray[np.float64] | float, sd: NDArray[np.float64] | float, n: int, *, share: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of the confidence interval of a mean of ``n`` values, elementwise.

    Student's interval is ``mean ± t_{n-1} sd / sqrt(n)``. A share, such as an accuracy, lies in [0, 1], and so does its
    interval: it is Student's interval of ``logit(mean)``, whose standard error is ``sd / sqrt(n)`` divided by
    ``mean (1 - mean)``, mapped back by the logistic function. It contains the mean. Near 0 and 1, where values are
    skewed, it covers the true mean more often than Student's interval. A mean of exactly 0 or 1 has no deviation, so
    its interval is that point.

    Parameters
    ----------
    mean
        Means.
    sd
        Sample deviations, with ``n - 1``.
    n
        Number of values, at least two.
    share
        Whether the values lie in [0, 1].

    Examples
    --------
    >>> [round(float(end), 4) for end in mean_interval(0.98, 0.02, 3)]
    [0.9303, 1.0297]
    >>> [round(float(end), 4) for end in mean_interval(0.98, 0.02, 3, share=True)]
    [0.7953, 0.9984]
    """
    from scipy import special, stats

    mean = np.asarray(mean, dtype=np.float64)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) / np.sqrt(n) * np.asarray(sd, dtype=np.float64)
    low, high = mean - half, mean + half
    if share:
        inner = (mean > 0) & (mean < 1)
        at = np.where(inner, mean, 0.5)
        centre, width = special.logit(at), half / (at * (1 - at))
        # Rounding must not put the mean outside.
        low = np.where(inner, np.minimum(special.expit(centre - width), mean), mean)
        high = np.where(inner, np.maximum(special.expit(centre + width), mean), mean)
    return low, high
