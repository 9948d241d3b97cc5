"""Running moments of observations: count, mean and variance, merged exactly.

Shapes: ``n`` observations of ``O`` numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_TINY: Final = 1e-8
LARGEST: Final = 10.0
"""Largest size of a normalised number."""


@final
@dataclass(frozen=True)
class Moments:
    """Count, mean ``(O,)`` and variance ``(O,)`` of observations; the variance divides by the count.

    Examples
    --------
    >>> seen = Moments.none((1,)).merged(Moments.of(np.array([[1.0], [3.0]])))
    >>> seen.count, seen.mean.tolist(), seen.variance.tolist()
    (2.0, [2.0], [1.0])
    """

    count: float
    mean: Floats
    variance: Floats

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Moments:
        """Return the moments before the first observation, which normalise nothing."""
        return cls(0.0, np.zeros(shape), np.ones(shape))

    @classmethod
    def of(cls, x_nO: Floats) -> Moments:
        """Return the moments of some observations."""
        return cls(float(len(x_nO)), x_nO.mean(0), x_nO.var(0))

    def merged(self, other: Moments) -> Moments:
        """Return the moments of both sets of observations together."""
        if not self.count:
            return other
        count = self.count + other.count
        share, apart_O = other.count / count, other.mean - self.mean
        variance_O = (1 - share) * self.variance + share * other.variance + share * (1 - share) * apart_O**2
        return Moments(count, self.mean + share * apart_O, variance_O)

    def normalised(self, x: Floats) -> Floats:
        """Return observations ``(..., O)`` with about mean 0 and variance 1, none larger than 10."""
        scaled: Floats = np.clip((x - self.mean) / np.sqrt(self.variance + _TINY), -LARGEST, LARGEST)
        return scaled


def pooled(mean_SO: Floats, square_SO: Floats, weights_S: Floats) -> Moments:
    """Return the moments of all clients' observations from the weighted means of their means and mean squares.

    The weights are the clients' shares of the observations. Variances cannot be averaged in this way.

    Examples
    --------
    >>> both = pooled(np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]]), np.array([0.5, 0.5]))
    >>> both.mean.tolist(), both.variance.tolist()
    ([1.0], [2.0])
    """
    mean_O, square_O = weights_S @ mean_SO, weights_S @ square_SO
    return Moments(1.0, mean_O, np.maximum(square_O - mean_O**2, 0.0))
