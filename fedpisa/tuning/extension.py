"""Edges of search spaces: whether a chosen value lies at one, and the space widened beyond it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Final, Literal, final

import numpy as np

from fedpisa.tuning.space import Choices, Range, Space
from fedpisa.tuning.subject import Subject

Side = Literal["low", "high"]
EDGE: Final = 0.05
"""Distance to an end of a range, as a fraction of the range, within which a value lies at the edge."""
HALVINGS: Final = 20
"""Halvings of the interval in which the bound of a key is searched."""


@final
@dataclass(frozen=True)
class Edge:
    """A chosen value at the edge of its space, where the key allows values beyond.

    Parameters
    ----------
    key
        The searched key.
    value
        The chosen value.
    side
        The end of the space.
    wider
        The space widened beyond this end.
    """

    key: str
    value: object
    side: Side
    wider: Space


def edges(
    subject: Subject,
    chosen: Mapping[str, object],
    tried: Iterable[Mapping[str, object]] = (),
    *,
    grid: bool = False,
) -> list[Edge]:
    """Return the searched keys whose chosen value lies at an edge that can be widened.

    Parameters
    ----------
    subject
        The subject.
    chosen
        Its chosen values.
    tried
        The values of all its trials.
    grid
        Whether the values are those of a grid; then a range is widened as the list of its grid.

    Examples
    --------
    >>> from pathlib import PurePosixPath
    >>> base = {"algorithm": "fedavg", "momentum": 0.5}
    >>> space = {"learning-rate": Range(0.01, 1, log=True), "momentum": Range(0.1, 0.9)}
    >>> subject = Subject("a", {}, PurePosixPath("a"), base, space)
    >>> [(edge.key, edge.wider) for edge in edges(subject, {"learning-rate": 0.9, "momentum": 0.5})]
    [('learning-rate', Range(low=0.01, high=100.0, log=True, step=None, points=None, whole=False))]
    """
    found = []
    tried = list(tried)
    for key, space in subject.space.items():
        side = edge_of(space, chosen[key], [values[key] for values in tried])
        if side is not None:
            wider = widened(space, side, partial(subject.allows, key), grid=grid)
            if wider is not None:
                found.append(Edge(key, chosen[key], side, wider))
    return found


def edge_of(space: Space, value: object, tried: Iterable[object] = ()) -> Side | None:
    """Return the edge at which a value lies, if any.

    A value of a range is at an edge if it is within `EDGE` of an end, on the range's scale. A value of a list of
    numbers is at an edge if it is the smallest or the largest. In both, it is also at an edge if it is the smallest or
    the largest of several values that were tried. Other lists have no edges.

    Examples
    --------
    >>> edge_of(Range(0.01, 1, log=True), 0.99), edge_of(Range(1, 20, whole=True), 2), edge_of(Choices((1, 3)), 1)
    ('high', None, 'low')
    >>> edge_of(Range(0.01, 1, log=True), 0.5, [0.02, 0.5])
    'high'
    """
    if isinstance(space, Choices) and len(space.numbers) < 2:
        return None
    assert isinstance(value, int | float)
    if isinstance(space, Range):
        place = space.fraction(value)
        is_low, is_high = place <= EDGE, place >= 1 - EDGE
    else:
        is_low, is_high = value == space.numbers[0], value == space.numbers[-1]
    numbers = {one for one in tried if isinstance(one, int | float)}
    if len(numbers) > 1 and not is_low and not is_high:
        is_low, is_high = value == min(numbers), value == max(numbers)
    return "low" if is_low else "high" if is_high else None


def widened(space: Space, side: Side, allows: Callable[[float], bool], *, grid: bool = False) -> Space | None:
    """Return a space widened beyond one end as far as a key allows, or ``None`` if it has no room there.

    A range grows by its own length, on its scale. If the key does not allow this, the range ends at the key's bound. A
    list of numbers is repeated beyond its end: multiplied by the ratio of its largest to its smallest number, or
    shifted by their difference if the numbers are evenly spaced or not all positive.

    Parameters
    ----------
    space
        The space.
    side
        The end.
    allows
        Whether the key allows a value.
    grid
        Whether to widen a range as the list of its grid.

    Examples
    --------
    >>> widened(Range(0.5, 0.9), "high", lambda value: value <= 1)
    Range(low=0.5, high=1.0, log=False, step=None, points=None, whole=False)
    >>> widened(Choices((0.1, 0.3, 1)), "high", lambda value: True)
    Choices(values=(0.1, 0.3, 1, 3.0, 10.0))
    """
    if isinstance(space, Range) and not grid:
        return _wider_range(space, side, allows)
    values = space.grid()
    numbers = Choices(values).numbers
    if len(numbers) < 2:
        return None
    shifts = not space.log if isinstance(space, Range) else _is_shifted(numbers)
    inside = numbers[1:] if side == "high" else numbers[:-1]
    moved = (_moved(value, numbers, side, shifts) for value in inside)
    new = [
        value
        for value in dict.fromkeys(moved)
        if (value > numbers[-1] if side == "high" else value < numbers[0])
        and math.isfinite(value)
        and allows(value)
    ]
    if not new:
        return None
    return Choices((*values, *new) if side == "high" else (*new, *values))


def _is_shifted(numbers: tuple[float, ...]) -> bool:
    steps = np.diff(numbers)
    return numbers[0] <= 0 or (len(steps) > 1 and np.allclose(steps, steps[0], rtol=1e-6, atol=0))


def _moved(value: float, numbers: tuple[float, ...], side: Side, shifts: bool) -> float:
    low, high = numbers[0], numbers[-1]
    if shifts:
        moved = value + (high - low if side == "high" else low - high)
    else:
        moved = value * high / low if side == "high" else value * low / high
    is_whole = all(isinstance(number, int) for number in numbers) and float(moved).is_integer()
    return int(moved) if is_whole else float(f"{moved:.12g}")


def _wider_range(space: Range, side: Side, allows: Callable[[float], bool]) -> Range | None:
    near = space.high if side == "high" else space.low

    def is_allowed(value: float) -> bool:
        beyond = value > near if side == "high" else value < near
        return beyond and math.isfinite(value) and (value > 0 or not space.log) and allows(value)

    if is_allowed(far := _beyond(space, side, 1.0)):
        return replace(space, high=far) if side == "high" else replace(space, low=far)
    share, end = 0.0, near
    for halving in range(1, HALVINGS + 1):
        value = _beyond(space, side, share + 2.0**-halving)
        if is_allowed(value):
            share, end = share + 2.0**-halving, value
    refused = _beyond(space, side, share + 2.0**-HALVINGS)
    for bound in (0, 1):  # a key that allows 1 ends there, not at 0.9999999
        if space.step is None and min(end, refused) < bound <= max(end, refused) and is_allowed(bound):
            end = bound if space.whole else float(bound)
    if abs(space.fraction(end) - space.fraction(near)) < EDGE:
        return None
    return replace(space, high=end) if side == "high" else replace(space, low=end)


def _beyond(space: Range, side: Side, share: float) -> float:
    """Return the end of a range that grows by a share of its own length, in (0, 1]."""
    near, sign = (space.high, 1) if side == "high" else (space.low, -1)
    length = space.high - space.low
    if space.step is not None:
        steps = sign * int(share * round(length / space.step) + 1e-9)
        decimal = Decimal(str(near)) + steps * Decimal(str(space.step))  # as Optuna computes
        return int(decimal) if space.whole else float(decimal)
    if space.log:
        try:
            end = near * math.pow(space.high / space.low, sign * share)
        except OverflowError:
            return math.inf
    else:
        end = near + sign * share * length
    if not math.isfinite(end):
        return end
    return round(end) if space.whole else float(f"{end:.12g}")
