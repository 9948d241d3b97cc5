"""What a key may be tuned over: a range of numbers, or a list of choices."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import numpy as np

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Scalar = bool | int | float | str
_FIELDS: Final = ("low", "high", "log", "step", "points")


@final
@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included.

    Parameters
    ----------
    low, high
        The ends.
    log
        Whether ratios count rather than differences.
    step
        Distance of neighbours; any number in between by default, any whole number if ``whole``.
    points
        How many of them a grid has, evenly spread.
    whole
        Whether only whole numbers are meant.

    Raises
    ------
    ValueError
        If that is no range.

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
        ends = (self.low, self.high)
        if not all(map(math.isfinite, ends)) or self.low >= self.high:
            raise ValueError(f"low = {self.low} must be less than high = {self.high}, and both finite")
        if self.log and self.low <= 0:
            raise ValueError(f"low = {self.low} must be positive where log = true")
        if self.step is not None:
            if self.log:
                raise ValueError("step and log exclude each other: leave one of them out")
            steps = (self.high - self.low) / self.step if self.step > 0 else math.nan
            if not math.isclose(steps, round(steps) if math.isfinite(steps) else 0, rel_tol=1e-9):
                raise ValueError(f"step = {self.step} does not lead from low = {self.low} to {self.high}")
        if self.points is not None and (self.points < 2 or self.step is not None):
            raise ValueError(f"points = {self.points} must be 2 or more, and without step")

    @property
    def size(self) -> float:
        """How many values there are; infinite where nothing keeps them apart."""
        if self.step is not None:
            return round((self.high - self.low) / self.step) + 1
        return self.high - self.low + 1 if self.whole else math.inf

    def grid(self) -> tuple[float, ...]:
        """Return the values of a grid, in ascending order.

        Raises
        ------
        ValueError
            If there are infinitely many, and ``points`` does not say how many to take.
        """
        if self.points is not None:
            spread = np.geomspace if self.log else np.linspace
            values = [float(value) for value in spread(self.low, self.high, self.points)]
        elif math.isinf(self.size):
            raise ValueError(
                'a grid needs points = ..., step = ... or a list of values, or take sampler = "tpe"'
            )
        else:
            values = [self.low + number * (self.step or 1) for number in range(int(self.size))]
        return tuple(dict.fromkeys(map(round, values))) if self.whole else tuple(values)

    def fraction(self, value: float) -> float:
        """Return where a value lies: 0 at ``low``, 1 at ``high``."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def distribution(self) -> BaseDistribution:
        """Return the range as Optuna says it."""
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
        return stored


@final
@dataclass(frozen=True)
class Choices:
    """Values to choose from; of no order, even where they are numbers.

    Examples
    --------
    >>> widths = Choices(([32], [64, 32]))
    >>> widths.encoded([64, 32]), widths.decoded("[64, 32]")
    ('[64, 32]', [64, 32])
    """

    values: tuple[object, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("there is nothing to choose from: list at least one value")
        if len(set(map(repr, self.values))) < len(self.values):
            raise ValueError(f"{list(self.values)!r} has a value twice: list each once")

    @property
    def size(self) -> float:
        """How many values there are."""
        return len(self.values)

    def grid(self) -> tuple[object, ...]:
        """Return the values, in their order."""
        return self.values

    def distribution(self) -> BaseDistribution:
        """Return the choices as Optuna says them."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([self.encoded(value) for value in self.values])

    def encoded(self, value: object) -> Scalar:
        """Return a value as Optuna stores it: what is no scalar as JSON."""
        return value if isinstance(value, bool | int | float | str) else json.dumps(value)

    def decoded(self, stored: Scalar) -> object:
        """Return the value that Optuna stores."""
        return next(value for value in self.values if self.encoded(value) == stored)


Space = Range | Choices


def parse_space(written: object) -> Space:
    """Return the space that a study file writes: a table with ``low`` and ``high``, or a list.

    Raises
    ------
    ValueError
        If it is neither.

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
        raise ValueError(f"{written!r} is no search space: {form}")
    for name in written:
        if name not in _FIELDS:
            raise ValueError(f"unknown {name!r}: {form}")
    for name in ("low", "high"):
        if name not in written:
            raise ValueError(f"{name} is missing: {form}")
    for name in ("low", "high", "step"):
        if name in written and not _is_number(written[name]):
            raise ValueError(f"{name} = {written[name]!r} is not a number")
    if not isinstance(written.get("log", False), bool):
        raise ValueError(f"log = {written['log']!r} must be true or false")
    points = written.get("points")
    if points is not None and (not isinstance(points, int) or isinstance(points, bool)):
        raise ValueError(f"points = {points!r} is not a whole number")
    return Range(**written)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
