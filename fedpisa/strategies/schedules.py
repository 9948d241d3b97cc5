"""Step-size schedules: functions by name, with their own keys, that return a factor for each round.

A schedule is a function ``(rounds_done, num_rounds, *, keys) -> Factor``. ``rounds_done`` counts finished rounds from 0
and ``num_rounds`` is the number of rounds, both without the warm-up. `schedule_of` selects the keys that are scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import cos, isfinite, pi, prod

from fedpisa.clients.step_sizes import UNSCHEDULED, StepSizeSchedule, scaled, step_sizes
from fedpisa.components import nearest
from fedpisa.strategies.base import Algorithm
from fedpisa.typing import Positive, PositiveInt, Probability

Factor = float
"""The factor of a step size in one round."""


def constant() -> Factor:
    """``1`` in all rounds."""
    return 1.0


def step(rounds_done: int, *, schedule_every: PositiveInt, schedule_factor: Positive = 0.1) -> Factor:
    """``schedule-factor ^ floor(t / schedule-every)`` after ``t`` rounds.

    Parameters
    ----------
    schedule_every
        Rounds between two changes.
    schedule_factor
        Factor of one change.

    Examples
    --------
    >>> [step(t, schedule_every=2, schedule_factor=0.5) for t in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return schedule_factor ** (rounds_done // schedule_every)


def milestones(
    rounds_done: int,
    *,
    schedule_milestones: tuple[PositiveInt, ...],
    schedule_factor: Positive | tuple[Positive, ...] = 0.1,
) -> Factor:
    """``schedule-factor`` multiplied over all milestones ``m <= t`` after ``t`` rounds.

    Parameters
    ----------
    schedule_milestones
        Rounds after which the step size changes, in ascending order.
    schedule_factor
        Factor of each change: one number for all milestones, or a list with one number for each.

    Examples
    --------
    >>> [milestones(t, schedule_milestones=(2, 3), schedule_factor=(0.5, 0.1)) for t in range(5)]
    [1.0, 1.0, 0.5, 0.05, 0.05]
    """
    if not schedule_milestones or any(m >= after for m, after in pairwise(schedule_milestones)):
        raise ValueError(
            f"schedule-milestones = {[*schedule_milestones]}: give rounds in ascending order, such as [90, 120]"
        )
    count = len(schedule_milestones)
    each = schedule_factor if isinstance(schedule_factor, tuple) else (schedule_factor,) * count
    if len(each) != count:
        raise ValueError(
            f"schedule-factor = {[*each]} for schedule-milestones = {[*schedule_milestones]}: give one number, or one "
            "for each milestone"
        )
    return prod((f for f, m in zip(each, schedule_milestones, strict=True) if m <= rounds_done), start=1.0)


def linear(rounds_done: int, num_rounds: int) -> Factor:
    """``1 - t / T`` after ``t`` of ``T`` rounds, so that the last round has a positive factor.

    Examples
    --------
    >>> [linear(t, 4) for t in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    return 1 - rounds_done / num_rounds


def cosine(rounds_done: int, num_rounds: int, *, schedule_end: Probability = 0.0) -> Factor:
    """``e + (1 - e) (1 + cos(pi t / T)) / 2`` after ``t`` of ``T`` rounds, ``e = schedule-end``.

    The factor would reach ``e`` one round after the last, so the last round has a positive factor even if ``e = 0``.

    Parameters
    ----------
    schedule_end
        Factor that the schedule approaches.

    Examples
    --------
    >>> [round(cosine(t, 4, schedule_end=0.2), 3) for t in range(4)]
    [1.0, 0.883, 0.6, 0.317]
    """
    return schedule_end + (1 - schedule_end) * (1 + cos(pi * rounds_done / num_rounds)) / 2


def factors(rule: Callable[[int, int], float], num_rounds: int, warmup_rounds: int = 0) -> tuple[float, ...]:
    """Return the factors of all rounds; warm-up round ``r`` has ``r / (warmup_rounds + 1)`` times the rule's first.

    Parameters
    ----------
    rule
        Factor after ``t`` of ``T`` rounds, without the warm-up.
    num_rounds
        Number of rounds, including the warm-up.
    warmup_rounds
        Number of warm-up rounds.

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


def schedule_of(
    algorithm: Algorithm, factors_T: tuple[float, ...], keys: tuple[str, ...] | None = None
) -> StepSizeSchedule:
    """Return the schedule of an algorithm's step sizes; `UNSCHEDULED` if all factors are 1.

    Parameters
    ----------
    algorithm
        The algorithm to schedule.
    factors_T
        Factors of rounds 1, 2, ...; later rounds use the last one.
    keys
        Keys to scale. By default the client's step sizes; without any, the client's inverse step sizes; without
        either, those of the server.

    Raises
    ------
    ValueError
        If the algorithm has no such key, or the key must not change.

    Examples
    --------
    >>> from fedpisa.strategies.fedavg import FedAvg
    >>> from fedpisa.strategies.pisa import Pisa
    >>> schedule_of(FedAvg(), (1.0, 0.5)).keys, schedule_of(Pisa(), (1.0, 0.5)).keys
    (('learning-rate',), ('sigma', 'rho'))
    """
    if set(factors_T) == {1.0}:
        return UNSCHEDULED
    found = {name: value for name, _, value in step_sizes(algorithm)}
    if keys is None:
        groups = (
            tuple(dict.fromkeys(name for name, inverse, _ in step_sizes(part) if inverse == divided))
            for part in (algorithm.local_update, algorithm)
            for divided in (False, True)
        )
        keys = next(filter(None, groups), ())
    if not keys:
        raise ValueError(
            f"the schedule has nothing to act on: no key of {type(algorithm).__name__} is a StepSize or an "
            'InverseStepSize; annotate one, or set schedule = "constant" and warmup-rounds = 0'
        )
    for name in keys:
        if name not in found:
            raise ValueError(
                f"schedule-keys names {name!r}, which cannot be scheduled here{nearest(name, found)} "
                f"(what can: {', '.join(found) or 'none'})"
            )
        if name in algorithm.constants:
            raise ValueError(
                f"schedule-keys names {name!r}, which must not change with the round: {algorithm.constants[name]}"
            )
        if found[name] is None:
            raise ValueError(f"schedule-keys names {name!r}, which has no value: set it")
        if isinstance(found[name], str):
            raise ValueError(
                f'the schedule changes {name}, and {name} = "{found[name]}" has no number to change: give one, or set '
                'schedule = "constant"'
            )
    # Scale once, so that a component that refuses a scaled value raises here.
    scaled(algorithm, keys, next(factor for factor in factors_T if factor != 1))
    return StepSizeSchedule(factors_T, keys)
