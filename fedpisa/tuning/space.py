"""Search spaces of a key: a range of numbers, or a list of choices."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast, final

import numpy as np

from fedpisa.components import are_distinct, printable

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Scalar = bool | int | float | str
MOST_POINTS: Final = 100_000
"""The largest number of trials, and of points of a grid."""
_FIELDS: Final = ("low", "high", "log", "step", "points")


@final
@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included.

    Parameters
    ----------
    low, high
        Ends of the range.
    log
        Whether to search on a logarithmic scale.
    step
        Distance between neighbouring values; without it, the range is continuous, or has all whole numbers if
        ``whole``.
    points
        Number of evenly spaced values in a grid.
    whole
        Whether the range has whole numbers only.

    Raises
    ------
    ValueError
        If the parameters do not define a range.

    Examples
    --------
    >>> Range(0.01, 1, log=True, points=3).grid()
    (0.01, 0.1, 1.0)
    >>> Range(1, 9, step=4, whole=True).grid(), Range(0.1, 0.9).size
    ((1, 5, 9), inf)
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    points: int | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or not math.isfinite(self.high - self.low):
            raise ValueError(
                f"low = {self.low} must be less than high = {self.high}, and both must be finite, as their difference"
            )
        if self.log and self.low <= 0:
            raise ValueError(f"low = {self.low} must be positive where log = true")
        if self.step is not None:
            if self.log:
                raise ValueError("step and log exclude each other: leave one of them out")
            steps = (self.high - self.low) / self.step if self.step > 0 else math.nan
            if not 0.5 < steps < 2**53 or not math.isclose(steps, round(steps), rel_tol=1e-9):
                raise ValueError(f"step = {self.step} does not lead from low = {self.low} to {self.high}")
        if self.points is not None and (self.points < 2 or self.step is not None):
            raise ValueError(f"points = {self.points} must be 2 or more, and without step")

    @property
    def size(self) -> float:
        """Number of values; infinite for a continuous range."""
        if self.step is not None:
            return round((self.high - self.low) / self.step) + 1
        return self.high - self.low + 1 if self.whole else math.inf

    def grid(self) -> tuple[float, ...]:
        """Return the values of a grid, in ascending order.

        Raises
        ------
        ValueError
            If the range is continuous and has no ``points``, or has more values than `MOST_POINTS`.
        """
        size = self.points or self.size
        if MOST_POINTS < size < math.inf:
            raise ValueError(
                f"a grid of {size:.0f} values is too large: take at most {MOST_POINTS} by points = ... or step = ..., "
                'or sampler = "tpe"'
            )
        if self.points is not None:
            spread = np.geomspace if self.log else np.linspace
            values = [float(value) for value in spread(self.low, self.high, self.points)]
        elif math.isinf(self.size):
            raise ValueError(
                'a grid needs points = ..., step = ... or a list of values, or take sampler = "tpe"'
            )
        else:
            steps = (self.low + number * (self.step or 1) for number in range(int(self.size)))
            values = [min(value, self.high) for value in steps]  # the last may round up
        return tuple(dict.fromkeys(map(round, values))) if self.whole else tuple(values)

    def fraction(self, value: float) -> float:
        """Return the relative position of a value: 0 at ``low``, 1 at ``high``."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def distribution(self) -> BaseDistribution:
        """Return the range as an Optuna distribution."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def encoded(self, value: object) -> Scalar:
        """Return a value as Optuna stores it."""
        assert isinstance(value, int | float)
        return value

    def decoded(self, stored: Scalar) -> object:
        """Return the value that Optuna stores."""
        return self.encoded(stored)


@final
@dataclass(frozen=True)
class Choices:
    """A list of values.

    Examples
    --------
    >>> widths = Choices(([32], [64, 32]))
    >>> widths.encoded([64, 32]), widths.decoded("[64, 32]")
    ('[64, 32]', [64, 32])
    """

    values: tuple[object, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("there is nothing to choose from, []: list at least one value")
        if not are_distinct(self.values):
            raise ValueError(f"{list(self.values)!r} has a value twice: list each once")

    @property
    def size(self) -> float:
        """Number of values."""
        return len(self.values)

    @property
    def numbers(self) -> tuple[float, ...]:
        """The values in ascending order if all are finite numbers; otherwise nothing."""
        values = cast(tuple[Any, ...], self.values)
        are_numbers = all(_is_number(value) and math.isfinite(value) for value in values)
        return tuple(sorted(values)) if are_numbers else ()

    def grid(self) -> tuple[object, ...]:
        """Return the values in the given order."""
        return self.values

    def distribution(self) -> BaseDistribution:
        """Return the choices as an Optuna distribution."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([self.encoded(value) for value in self.values])

    def encoded(self, value: object) -> Scalar:
        """Return a value as Optuna stores it: a scalar, or JSON."""
        return value if isinstance(value, bool | int | float | str) else json.dumps(value)

    def decoded(self, stored: Scalar) -> object:
        """Return the value that Optuna stores."""
        return next(value for value in self.values if self.encoded(value) == stored)


Space = Range | Choices


def stored_space(space: Space) -> object:
    """Return a space as JSON can store it, for `read_stored_space`."""
    return vars(space) if isinstance(space, Range) else list(space.values)


def read_stored_space(stored: Any) -> Space:
    """Return a space that `stored_space` made.

    Examples
    --------
    >>> read_stored_space(stored_space(Range(1, 9, whole=True))) == Range(1, 9, whole=True)
    True
    """
    return Range(**stored) if isinstance(stored, Mapping) else Choices(tuple(stored))


def parse_space(written: object) -> Space:
    """Return the space of an entry in a study file: a table with ``low`` and ``high``, or a list.

    Raises
    ------
    ValueError
        If the entry is neither.

    Examples
    --------
    >>> parse_space({"low": 0.001, "high": 1, "log": True})
    Range(low=0.001, high=1, log=True, step=None, points=None, whole=False)
    >>> parse_space([0.1, 1])
    Choices(values=(0.1, 1))
    """
    if isinstance(written, Sequence) and not isinstance(written, str):
        return Choices(tuple(written))
    form = f"write a list of values, or a table of {', '.join(_FIELDS)} with at least low and high"
    if not isinstance(written, Mapping):
        raise ValueError(f"{written!r} is not a search space: {form}")
    for name in written:
        if name not in _FIELDS:
            raise ValueError(f"unknown {name!r}: {form}")
    for name in ("low", "high"):
        if name not in written:
            raise ValueError(f"{name} is missing: {form}")
    for name in ("low", "high", "step"):
        value = written.get(name)
        if name in written and not _is_number(value):
            raise ValueError(f"{name} = {value!r} is not a number")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(
                f"{name} = {printable(value, 40)} must be between -2**63 and 2**63 - 1, as in TOML"
            )
    if not isinstance(written.get("log", False), bool):
        raise ValueError(f"log = {written['log']!r} must be true or false")
    points = written.get("points")
    if points is not None and (not isinstance(points, int) or isinstance(points, bool)):
        raise ValueError(f"points = {points!r} is not a whole number")
    return Range(**written)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
