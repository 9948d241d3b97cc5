"""Factors of a step size, round by round: functions by name, with their own keys.

A schedule is a function ``(rounds_done, num_rounds, *, its keys) -> Factor``: how many rounds lie behind, from 0,
and how many there are, both counted from the end of the warm-up. What the factors act on is said in
`fedpisa.strategies.scheduled`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, isfinite, pi

from fedpisa.typing import Positive, PositiveInt, Probability

Factor = float
"""What a step size is multiplied by in one round."""


def constant() -> Factor:
    """``1``: nothing changes."""
    return 1.0


def step(rounds_done: int, *, schedule_every: PositiveInt, schedule_factor: Positive = 0.1) -> Factor:
    """``schedule-factor ^ floor(t / schedule-every)`` after ``t`` rounds.

    Parameters
    ----------
    schedule_every
        Rounds between two changes.
    schedule_factor
        What a change multiplies by.

    Examples
    --------
    >>> [step(t, schedule_every=2, schedule_factor=0.5) for t in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return schedule_factor ** (rounds_done // schedule_every)


def cosine(rounds_done: int, num_rounds: int, *, schedule_end: Probability = 0.0) -> Factor:
    """``e + (1 - e) (1 + cos(pi t / T)) / 2`` after ``t`` of ``T`` rounds, ``e = schedule-end``.

    The round after the last would have ``e``, so that the last one still has a step with ``e = 0``.

    Parameters
    ----------
    schedule_end
        Factor at the end.

    Examples
    --------
    >>> [round(cosine(t, 4, schedule_end=0.2), 3) for t in range(4)]
    [1.0, 0.883, 0.6, 0.317]
    """
    return schedule_end + (1 - schedule_end) * (1 + cos(pi * rounds_done / num_rounds)) / 2


def factors(rule: Callable[[int, int], float], num_rounds: int, warmup_rounds: int = 0) -> tuple[float, ...]:
    """Return the factor of each round, ``r / (warmup_rounds + 1)`` times the first one in warm-up round ``r``.

    Parameters
    ----------
    rule
        Factor after ``t`` of ``T`` rounds, the warm-up not counted.
    num_rounds
        Number of rounds, the warm-up included.
    warmup_rounds
        How many of them the factor rises in.

    Raises
    ------
    ValueError
        If the warm-up leaves no round, or a factor is not a positive number.

    Examples
    --------
    >>> factors(lambda t, total: 1 - t / total, num_rounds=6, warmup_rounds=1)
    (0.5, 1.0, 0.8, 0.6, 0.4, 0.19999999999999996)
    """
    left = num_rounds - warmup_rounds
    if left <= 0:
        raise ValueError(
            f"warmup-rounds = {warmup_rounds} leaves no round of num-server-rounds = {num_rounds}: give fewer"
        )
    after = [rule(rounds_done, left) for rounds_done in range(left)]
    for rounds_done, factor in enumerate(after):
        if not (isinstance(factor, int | float) and isfinite(factor) and factor > 0):
            raise ValueError(
                f"the schedule gives {factor!r} in round {warmup_rounds + rounds_done + 1}: it must give "
                "a positive number in every round"
            )
    warmup = [after[0] * rounds / (warmup_rounds + 1) for rounds in range(1, warmup_rounds + 1)]
    return (*warmup, *after)
