"""Speed and availability of simulated clients: functions by name, with their own keys.

Shapes: ``S`` clients of a round. A client's values depend on the seed, its number and the round alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedpisa.rng import hashed, stream_key
from fedpisa.typing import Fraction, NonNegative, Positive, PositiveInt

Pace = NDArray[np.float64]
"""Seconds that each client needs for one mini-batch gradient ``(S,)``; 0 without a simulated clock."""
Reachable = NDArray[np.bool_]
"""Whether each client can be reached, ``(S,)``."""


def none(clients_S: NDArray[np.int64]) -> Pace:
    """No clock: replies take no time."""
    return np.zeros(len(clients_S))


def constant(clients_S: NDArray[np.int64], *, step_seconds: Positive = 1.0) -> Pace:
    """Every client needs ``step-seconds`` for a gradient.

    Parameters
    ----------
    step_seconds
        Seconds for one mini-batch gradient.
    """
    return np.full(len(clients_S), step_seconds)


def lognormal(
    clients_S: NDArray[np.int64],
    server_round: int,
    seed: int,
    *,
    step_seconds: Positive = 1.0,
    pace_spread: NonNegative = 1.0,
    pace_jitter: NonNegative = 0.0,
) -> Pace:
    """``step-seconds exp(pace-spread a_i + pace-jitter b_it)``, with standard normal ``a_i`` and ``b_it``.

    Parameters
    ----------
    step_seconds
        Seconds that the median client needs for one mini-batch gradient.
    pace_spread
        Standard deviation over the clients of the logarithm of their usual pace.
    pace_jitter
        Standard deviation over the rounds of the logarithm of one client's pace.

    Examples
    --------
    >>> paces = lognormal(np.arange(10_000), 1, 0, step_seconds=2.0, pace_spread=0.5)
    >>> round(float(np.median(paces)), 1), round(float(np.log(paces).std()), 1)
    (2.0, 0.5)
    """
    spread_S = _normal(seed, "pace", clients_S)
    jitter_S = _normal(seed, "pace-jitter", clients_S, server_round)
    return step_seconds * np.exp(pace_spread * spread_S + pace_jitter * jitter_S)


def always(clients_S: NDArray[np.int64]) -> Reachable:
    """All clients are always available."""
    return np.ones(len(clients_S), dtype=np.bool_)


def on_off(
    clients_S: NDArray[np.int64],
    server_round: int,
    seed: int,
    *,
    online_share: Fraction = 0.5,
    online_period: PositiveInt = 24,
) -> Reachable:
    """Each client is available in ``online-share`` of every ``online-period`` rounds, with a random phase.

    Parameters
    ----------
    online_share
        Share of the rounds in which a client is available.
    online_period
        Rounds after which the pattern repeats.

    Examples
    --------
    >>> at = [bool(on_off(np.array([3]), t, 0, online_share=0.5, online_period=4)[0]) for t in range(8)]
    >>> sum(at), at[:4] == at[4:]
    (4, True)
    """
    phase_S = uniform(seed, "online", clients_S) * online_period
    online: Reachable = (server_round + phase_S) % online_period < online_share * online_period
    return online


def uniform(seed: int, name: str, *counters: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """Return numbers in [0, 1), each a function of the stream and its counters."""
    return np.asarray((hashed(stream_key(seed, name), *counters) >> np.uint64(11)) * 2.0**-53)


def _normal(seed: int, name: str, *counters: NDArray[np.int64] | int) -> NDArray[np.float64]:
    from scipy.special import ndtri

    # The offset avoids zero, where the quantile is infinite.
    return np.asarray(ndtri(uniform(seed, name, *counters) + 2.0**-54))
